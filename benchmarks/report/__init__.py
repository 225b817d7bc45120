"""The report of `bootpig-rt bench --report`: one page, Markdown beside it, plots as SVG."""
