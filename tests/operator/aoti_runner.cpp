// Runs a package of AOTInductor: aoti_runner PACKAGE INPUT OUTPUT, tensors as torch.save writes and torch.load reads.

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <vector>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

int main(int argc, char** argv) try {
  if (argc != 4) throw std::invalid_argument("expected PACKAGE INPUT OUTPUT");
  std::ifstream file(argv[2], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const at::Tensor input = torch::jit::pickle_load(bytes).toTensor();

  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const std::vector<at::Tensor> outputs = model.run({input});

  const std::vector<char> result = torch::jit::pickle_save(outputs.at(0));
  std::ofstream(argv[3], std::ios::binary).write(result.data(), static_cast<std::streamsize>(result.size()));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
