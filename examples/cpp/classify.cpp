// Classifies an image with a package that `dcn-export target=aoti` wrote; needs libtorch and nothing of dcn_ops.
//
//   classify MODEL.pt2 IMAGE.ppm SIZE MEAN STD
//
// IMAGE is a binary PPM (P6) or PGM (P5); it is resized to SIZE x SIZE. MEAN and STD are one number for every channel or
// three, such as 0.485,0.456,0.406. Prints the five best classes, a line each: index and score.

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

at::Tensor per_channel(const std::string& text) {
  std::vector<double> values;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) values.push_back(std::stod(part));
  if (values.size() != 1 && values.size() != 3) throw std::invalid_argument("expected 1 or 3 numbers: " + text);
  return at::tensor(values, at::kFloat).view({1, -1, 1, 1});
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 6) throw std::invalid_argument("expected MODEL.pt2 IMAGE.ppm SIZE MEAN STD");
  const std::int64_t size = std::stoll(argv[3]);
  at::Tensor image = at::_upsample_bilinear2d_aa(read_image(argv[2]), {size, size}, /*align_corners=*/false);
  image = (image - per_channel(argv[4])) / per_channel(argv[5]);

  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const at::Tensor scores = model.run({image.contiguous()}).at(0)[0];

  const auto [best, classes] = scores.topk(std::min<std::int64_t>(5, scores.size(0)));
  for (std::int64_t i = 0; i < best.size(0); ++i)
    std::cout << classes[i].item<std::int64_t>() << ' ' << best[i].item<float>() << '\n';
} catch (const std::exception& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
