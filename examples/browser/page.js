// Classifies a picture with the exported network: onnxruntime-web computes, everything comes from this page's own folder.
import * as ort from "./runtime/ort.wasm.min.mjs";
import { resized } from "./resize.js";

ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more would need headers that a plain static server does not send

const $ = (id) => document.getElementById(id);
const SHOWN = 5;

async function load() {
  const model = await (await fetch("model.json")).json();
  const bytes = await (await fetch(model.file)).arrayBuffer();
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  $("about").textContent = `${model.title} in 8-bit numbers, ${Math.round(bytes.byteLength / 1000)} KB, running in this page. ` +
    "Pictures stay on your device.";
  $("facts").textContent = `It knows ${model.classes.length} classes: ${model.classes.join(", ")}. ${model.note}`;
  return { ...model, session };
}

/** The picture's pixels as the network was trained on them: RGB, 0 to 255, stretched to its size; clear parts are white. */
async function pixels(blob, [height, width]) {
  const image = await createImageBitmap(blob);
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, image.width, image.height);
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  return resized(data, image.height, image.width, height, width);
}

/** Probabilities of the classes, and how long the network took in milliseconds. */
async function classify(model, rgb) {
  const [height, width] = model.size;
  const input = new ort.Tensor("float32", Float32Array.from(rgb), [1, height, width, 3]);
  const start = performance.now();
  const output = await model.session.run({ [model.session.inputNames[0]]: input });
  const milliseconds = performance.now() - start;
  const scores = Array.from(output[model.session.outputNames[0]].data);
  const top = Math.max(...scores);
  const powers = scores.map((s) => Math.exp(s - top));
  const total = powers.reduce((a, b) => a + b, 0);
  return { probabilities: powers.map((p) => p / total), milliseconds };
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function show(model, rgb, { probabilities, milliseconds }) {
  const [height, width] = model.size;
  const small = $("small");
  small.width = width;
  small.height = height;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) image.data.set([rgb[3 * i], rgb[3 * i + 1], rgb[3 * i + 2], 255], 4 * i);
  small.getContext("2d").putImageData(image, 0, 0);
  $("seen").hidden = false;
  const order = probabilities.map((p, i) => [p, model.classes[i]]).sort((a, b) => b[0] - a[0]);
  $("classes").replaceChildren(...order.slice(0, SHOWN).map(([p, name]) => {
    const item = document.createElement("li");
    const bar = Object.assign(document.createElement("i"), { className: "bar" });
    bar.style.width = `${100 * p}%`;
    const texts = [name, `${(100 * p).toFixed(1)} %`].map((t) => Object.assign(document.createElement("span"), { textContent: t }));
    item.append(bar, ...texts);
    return item;
  }));
  say(`Most likely: ${order[0][1]}. Computed in ${milliseconds.toFixed(1)} ms.`);
}

let address = null;

async function take(blob) {
  if (!blob || !blob.type.startsWith("image/")) return say("That is no picture; give a JPEG, PNG, WebP or GIF.", true);
  say("Looking…");
  try {
    const model = await loading;
    const rgb = await pixels(blob, model.size);
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(blob);
    Object.assign($("picture"), { src: address, hidden: false, alt: `The picture you gave${blob.name ? `, ${blob.name}` : ""}` });
    $("invitation").hidden = true;
    const result = await classify(model, rgb);
    show(model, rgb, result);
    document.dispatchEvent(new CustomEvent("classified", { detail: { ...result, rgb: Array.from(rgb) } }));
  } catch (error) {
    say(`This picture cannot be read (${error.message}); try another one.`, true);
  }
}

const drop = $("drop");
$("file").addEventListener("change", (event) => take(event.target.files[0]));
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = Array.from(event.clipboardData.files)[0];
  if (file) take(file);
});

const loading = load();
loading.then(
  () => { say("Ready. Give it a picture."); document.documentElement.dataset.ready = "yes"; },
  (error) => say(`The network could not be loaded (${error.message}). Is this page served over HTTP, with all its files?`, true),
);
