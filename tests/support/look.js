// What is wrong with the page as it is shown now: a list of sentences.

const faults = [];
const width = document.documentElement.clientWidth;

if (document.documentElement.scrollWidth > width)
  faults.push(`it is ${document.documentElement.scrollWidth} wide, the window ${width}`);

for (const image of document.images)
  if (!image.complete || !image.naturalWidth) faults.push(`no picture: ${image.src}`);

// Every line of text, as the rectangle that it covers; what is beside the article is the theme's.
const lines = [];
const walker = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode()); ) {
  const parent = node.parentElement;
  if (!node.data.trim() || !parent.checkVisibility({ visibilityProperty: true })) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const box of range.getClientRects())
    if (box.width > 1) lines.push({ box, parent, text: node.data.trim().slice(0, 40) });
}

// Lines touch each other; what covers more than that cannot be read.
const TOUCH = 3;
lines.sort((one, other) => one.box.top - other.box.top);
lines.forEach((one, number) => {
  for (const other of lines.slice(number + 1)) {
    if (other.box.top > one.box.bottom - TOUCH) break;
    const beside = other.box.left > one.box.right - TOUCH || one.box.left > other.box.right - TOUCH;
    if (!beside) faults.push(`"${other.text}" lies over "${one.text}"`);
  }
});

// In a drawing nothing makes room for a text that is too long.
for (const { box, parent, text } of lines) {
  const drawing = parent.closest("svg")?.getBoundingClientRect();
  if (drawing && (box.left < drawing.left || box.right > drawing.right))
    faults.push(`"${text}" is cut off in a drawing`);
}

// As WCAG 2 defines contrast; 4.5 is what it asks of text.
function luminance(color) {
  const parts = color.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
  const [r, g, b] = parts.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function background(element) {
  for (; element; element = element.parentElement) {
    const color = getComputedStyle(element).backgroundColor;
    if (!/, 0\)$/.test(color)) return color;
  }
  return "rgb(255, 255, 255)";
}

for (const { parent, text } of lines) {
  const style = getComputedStyle(parent);
  const color = parent.closest("svg") ? style.fill : style.color;
  const [dark, light] = [luminance(color), luminance(background(parent))].sort((a, b) => a - b);
  const contrast = (light + 0.05) / (dark + 0.05);
  if (contrast < 4.5) faults.push(`"${text}" has a contrast of ${contrast.toFixed(1)}`);
}

return [...new Set(faults)];
