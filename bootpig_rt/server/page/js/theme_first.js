// Runs before the page is painted, so that a chosen theme does not flash. Not a module for that reason.
try {
  const chosen = localStorage.getItem("bootpig.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is switched off: the system's theme it is.
}
