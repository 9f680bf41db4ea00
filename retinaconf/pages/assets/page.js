/** Start: the theme's button, then the explorer. */

function connectThemeButton() {
  const button = document.querySelector(".theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  system.addEventListener("change", show);
  show();
}

connectThemeButton();
const explorerData = JSON.parse(document.getElementById("explorer-data").textContent);
if (explorerData.images.length) {
  window.explorer = createExplorer(document.getElementById("explorer"), explorerData);
  for (const link of document.querySelectorAll("#worst .open")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      window.explorer.openObject(...["image", "object", "score"].map((name) => Number(link.dataset[name])));
    });
  }
}
