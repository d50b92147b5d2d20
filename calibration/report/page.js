// Draws the charts. They follow the list and the slider by themselves: Vega binds to both elements.
const { specs, datasets, themes } = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const views = [];
async function draw() {
  const name = dark.matches ? "dark" : "light";
  for (const view of views.splice(0)) view.finalize();
  for (const [id, spec] of Object.entries(specs)) {
    const element = document.getElementById(id);
    if (!element) continue;
    const options = { config: themes[name], actions: false, renderer: "svg", tooltip: { theme: name } };
    spec.datasets = { [spec.data.name]: datasets[spec.data.name] };
    views.push(await vegaEmbed(element, spec, options));
  }
  document.body.dataset.drawn = name;
}
dark.addEventListener("change", draw);
draw();

const slider = document.getElementById("lambda");
slider?.addEventListener("input", () => {
  const output = document.getElementById("lambda-name");
  output.value = output.dataset.stops.split(" ")[slider.value];
  slider.setAttribute("aria-valuetext", output.value);
});
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    if (button.dataset.text) {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.text).textContent);
      button.textContent = "Copied";
      return;
    }
    const rows = [...document.getElementById(button.dataset.table).rows];
    const text = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join("\t")).join("\n");
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  });
}
