"""A pair as a pipeline of diffusers."""

from bootpig_rt.integrations.diffusers.output import BootPIGPipelineOutput
from bootpig_rt.integrations.diffusers.pipeline import BootPIGPipeline

__all__ = ["BootPIGPipeline", "BootPIGPipelineOutput"]
