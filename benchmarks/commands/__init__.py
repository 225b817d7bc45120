"""The commands of `bootpig-rt` that measure; light to import."""
