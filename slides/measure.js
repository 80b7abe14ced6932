// What tools/slides.py asks of every slide in a browser: does all of it fit, how large is it, and can
// every label of its picture be read?
// The answer takes the place of the page, as JSON.
const wrongLabels = (svg) => {
  const { width, height } = svg.viewBox.baseVal;
  const labels = [...svg.querySelectorAll("text")].map((text) => {
    const { x, width } = text.getBBox(); // its height is the line's, not the letters'
    const [y, size] = [text.y.baseVal[0].value, parseFloat(text.getAttribute("font-size"))];
    return { text: text.textContent, x, right: x + width, y: y - 0.72 * size, floor: y + 0.2 * size };
  });
  const clipped = labels.filter((a) => a.x < -1 || a.y < -1 || a.right > width + 1 || a.floor > height + 1);
  const pairs = labels.flatMap((a, i) =>
    labels
      .slice(i + 1)
      .filter((b) => a.x < b.right && b.x < a.right && a.y < b.floor && b.y < a.floor)
      .map((b) => `the labels “${a.text}” and “${b.text}” overlap`),
  );
  return [...clipped.map((a) => `the label “${a.text}” is clipped`), ...pairs];
};

addEventListener("load", async () => {
  await document.fonts.ready;
  const found = [...document.querySelectorAll("section")].map((section) => {
    const frame = section.getBoundingClientRect();
    const scale = frame.width / section.offsetWidth; // Marp fits a slide to the window
    const style = getComputedStyle(section);
    const right = frame.right - parseFloat(style.paddingRight) * scale;
    const bottom = frame.bottom - parseFloat(style.paddingBottom) * scale;
    const slide = {
      title: section.querySelector("h1")?.textContent ?? "",
      over: Math.max(
        section.scrollHeight - section.clientHeight,
        section.scrollWidth - section.clientWidth,
      ),
      what: "",
      smallest: 1e9, // the smallest type, in pixels of a slide of 1280 × 720
      figure: 1e9, // by how much a notebook's figure is enlarged
      labels: [...section.querySelectorAll("figure svg")].flatMap(wrongLabels),
    };
    for (const element of section.querySelectorAll("*")) {
      if (element.closest("header, footer, mjx-assistive-mml, svg defs")) continue;
      const look = getComputedStyle(element);
      const box = element.getBoundingClientRect();
      if (look.display !== "inline" && box.width) {
        const hidden = element.tagName === "PRE" ? element.scrollWidth - element.clientWidth : 0;
        const over = Math.max(box.right - right, box.bottom - bottom) / scale;
        if (Math.max(over, hidden) > slide.over) {
          slide.over = Math.max(over, hidden);
          slide.what = `${element.tagName}: ${element.textContent.trim().slice(0, 60)}`;
        }
      }
      const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (words && !element.closest("mjx-container")) {
        const svg = element.closest("figure svg");
        const zoom = svg ? svg.getScreenCTM().a / scale : 1;
        slide.smallest = Math.min(slide.smallest, parseFloat(look.fontSize) * zoom);
      }
      if (element.tagName === "IMG") {
        const pick = look.objectFit === "cover" ? Math.max : Math.min;
        const zoom = pick(box.width / element.naturalWidth, box.height / element.naturalHeight);
        slide.figure = Math.min(slide.figure, zoom / scale);
      }
    }
    slide.over = Math.round(slide.over);
    return slide;
  });
  document.body.innerHTML = '<pre id="measured"></pre>';
  document.getElementById("measured").textContent = JSON.stringify(found);
});
