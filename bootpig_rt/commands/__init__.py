"""The commands of `bootpig-rt`: one module each, light to import."""
