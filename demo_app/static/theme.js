// Before the page is painted: the colours that its visitor chose, else those of the system (demo.css).
const chosen = localStorage.getItem("theme");
if (chosen) document.documentElement.dataset.theme = chosen;
