// Classifies an image with a package that `dcn-export target=aoti` wrote; needs libtorch and nothing of dcn_ops.
//
//   classify MODEL.pt2 IMAGE.ppm [SIZE MEAN STD]
//
// IMAGE is a binary PPM (P6) or PGM (P5); it is resized to SIZE x SIZE. MEAN and STD are one number for every channel or
// three, such as 0.485,0.456,0.406. By default all three are what the package says. Prints the five best classes, a line
// each: index and score. The package itself refuses images of a shape that it was not exported for.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

namespace {

int next_number(std::istream& file) {
  // Between numbers there may be comments, from '#' to the end of the line.
  while ((file >> std::ws).peek() == '#') {
    std::string comment;
    std::getline(file, comment);
  }
  int number = 0;
  if (!(file >> number) || number < 1) throw std::runtime_error("not a PPM or PGM file: broken header");
  return number;
}

// Returns [1, C, H, W] in [0, 1].
at::Tensor read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("can't open " + path);
  std::string kind;
  file >> kind;
  if (kind != "P6" && kind != "P5") throw std::runtime_error(path + " is no binary PPM (P6) or PGM (P5): " + kind);
  const int channels = kind == "P6" ? 3 : 1;
  const int width = next_number(file), height = next_number(file), largest = next_number(file);
  if (largest > 255) throw std::runtime_error(path + " has 16 bits to a value; 8 are read");
  file.get();  // one blank
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(channels) * width * height);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size())))
    throw std::runtime_error(path + " ends too early");
  const at::Tensor pixels = at::from_blob(bytes.data(), {1, height, width, channels}, at::kByte);
  return pixels.permute({0, 3, 1, 2}).to(at::kFloat).div(largest);
}

// Reads numbers with commas between them, in brackets or not.
std::vector<double> numbers(const std::string& name, const std::string& text) {
  std::vector<double> values;
  std::istringstream stream(text);
  if ((stream >> std::ws).peek() == '[') stream.get();
  double value = 0;
  for (char comma = ','; comma == ',' && stream >> value; comma = 0, stream >> comma) values.push_back(value);
  if (values.empty()) throw std::invalid_argument("expected " + name + " of numbers with commas, got \"" + text + '"');
  return values;
}

at::Tensor per_channel(const std::string& name, const std::string& text) {
  const std::vector<double> values = numbers(name, text);
  if (values.size() != 1 && values.size() != 3)
    throw std::invalid_argument("expected " + name + " of 1 or 3 numbers, got \"" + text + '"');
  return at::tensor(values, at::kFloat).view({1, -1, 1, 1});
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3 && argc != 6) throw std::invalid_argument("expected MODEL.pt2 IMAGE.ppm, or these and SIZE MEAN STD");
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const auto facts = model.get_metadata();
  const std::string size = argc == 6 ? argv[3] : facts.at("input_size");
  const std::string mean = argc == 6 ? argv[4] : facts.at("mean"), std = argc == 6 ? argv[5] : facts.at("std");

  const std::vector<double> sides = numbers("SIZE", size);  // one, or those of [C, H, W]
  const auto height = static_cast<std::int64_t>(sides[sides.size() == 3]), width = static_cast<std::int64_t>(sides.back());
  if (height < 1 || width < 1) throw std::invalid_argument("expected SIZE of 1 pixel or more, got " + size);
  at::Tensor image = at::_upsample_bilinear2d_aa(read_image(argv[2]), {height, width}, /*align_corners=*/false);
  image = (image - per_channel("MEAN", mean)) / per_channel("STD", std);

  const at::Tensor scores = model.run({image.contiguous()}).at(0)[0];

  const auto [best, classes] = scores.topk(std::min<std::int64_t>(5, scores.size(0)));
  for (std::int64_t i = 0; i < best.size(0); ++i)
    std::cout << classes[i].item<std::int64_t>() << ' ' << best[i].item<float>() << '\n';
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
