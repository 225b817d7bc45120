"""The commands of `bootpig-rt` that make data, train and evaluate; light to import."""
