// Where the windows of pooling lie in (N, H, W, C) images.
#pragma once
#include "scalar.cuh"

struct Windows {
  u32 height, width, channels;   // of the images that windows slide over
  u32 out_height, out_width;
  i32 window_y, window_x, stride_y, stride_x, top, left, bottom, right;
  u64 count;                     // elements of the result
  i32 count_padding;
};

struct Place {
  u32 channel, x, y;
  u64 image;
};
DEVICE Place place_of(u64 index, const Windows& form, u32 height, u32 width) {
  Place p;
  p.channel = u32(index % form.channels);
  index /= form.channels;
  p.x = u32(index % width);
  index /= width;
  p.y = u32(index % height);
  p.image = index / height;
  return p;
}
DEVICE u64 input_at(const Windows& form, u64 image, i32 y, i32 x, u32 channel) {
  return ((image * form.height + y) * form.width + x) * form.channels + channel;
}
DEVICE u64 output_at(const Windows& form, u64 image, i32 y, i32 x, u32 channel) {
  return ((image * form.out_height + y) * form.out_width + x) * form.channels + channel;
}

// The part of a window inside the image, and the windows that cover a pixel.
struct Range {
  i32 first, last;
};
DEVICE Range inside(i32 start, i32 window, u32 size) { return {max(start, 0), min(start + window, i32(size))}; }
DEVICE Range covering(i32 at, i32 before, i32 window, i32 stride, u32 outputs) {
  i32 reach = at + before - window + 1;
  i32 first = reach <= 0 ? 0 : (reach + stride - 1) / stride;
  return {first, min((at + before) / stride + 1, i32(outputs))};
}

// How many places the mean of a window divides by, along one dimension.
DEVICE i32 places(i32 start, i32 window, u32 size, i32 before, i32 after, i32 count_padding) {
  Range real = inside(start, window, size);
  if (!count_padding) return real.last - real.first;
  return min(start + window, i32(size) + after) - max(start, -before);
}
// The same for both dimensions together.
DEVICE i32 counted(const Windows& form, i32 oy, i32 ox) {
  return places(oy * form.stride_y - form.top, form.window_y, form.height, form.top, form.bottom, form.count_padding) *
         places(ox * form.stride_x - form.left, form.window_x, form.width, form.left, form.right, form.count_padding);
}
