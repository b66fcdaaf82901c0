// Bilinear resizing as Pillow does it, which the networks were trained with: a triangle as wide as what one new pixel covers,
// along rows first, then along columns, rounded to bytes in between. A canvas would blur differently.

/** For each of `size` places: the first of `length` pixels that count, and their shares. */
function shares(length, size) {
  const scale = length / size;
  const reach = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const last = Math.min(Math.trunc(centre + reach + 0.5), length);
    const weights = [];
    for (let at = first; at < last; at++) weights.push(Math.max(1 - Math.abs((at - centre + 0.5) / reach), 0));
    const total = weights.reduce((a, b) => a + b, 0);
    return [first, weights.map((w) => w / total)];
  });
}

/** RGBA bytes of height x width as RGB bytes of another size. */
export function resized(data, height, width, toHeight, toWidth) {
  const rows = new Uint8ClampedArray(height * toWidth * 3);
  shares(width, toWidth).forEach(([first, weights], x) => {
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * data[4 * (y * width + first + k) + c];
        rows[3 * (y * toWidth + x) + c] = Math.floor(sum + 0.5);
      }
    }
  });
  const out = new Uint8ClampedArray(toHeight * toWidth * 3);
  shares(height, toHeight).forEach(([first, weights], y) => {
    for (let x = 0; x < toWidth * 3; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * rows[3 * toWidth * (first + k) + x];
      out[3 * toWidth * y + x] = Math.floor(sum + 0.5);
    }
  });
  return out;
}
