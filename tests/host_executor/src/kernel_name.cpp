// The name of a kernel from its address, by the symbol table of the binary it is in: dladdr() alone knows exported
// functions only, and most kernels are not.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "machine.h"

namespace host_executor {
namespace {

// The function that starts at this address of a mapped ELF file, or "".
std::string symbol_at(const char* file, uint64_t address) {
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(file);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(file + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB && sections[i].sh_type != SHT_DYNSYM) continue;
    const char* names = file + sections[sections[i].sh_link].sh_offset;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(file + sections[i].sh_offset);
    for (uint64_t s = 0; s < sections[i].sh_size / sizeof(Elf64_Sym); ++s) {
      if (ELF64_ST_TYPE(symbols[s].st_info) == STT_FUNC && symbols[s].st_value == address) {
        return names + symbols[s].st_name;
      }
    }
  }
  return "";
}

std::string find_symbol(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info)) return "";
  const int descriptor = open(info.dli_fname, O_RDONLY);
  if (descriptor < 0) return "";
  struct stat status;
  std::string name;
  if (fstat(descriptor, &status) == 0) {
    void* file = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (file != MAP_FAILED) {
      const bool relocated = static_cast<const Elf64_Ehdr*>(file)->e_type == ET_DYN;
      const auto base = relocated ? reinterpret_cast<uint64_t>(info.dli_fbase) : 0;
      name = symbol_at(static_cast<const char*>(file), reinterpret_cast<uint64_t>(kernel) - base);
      munmap(file, size_t(status.st_size));
    }
  }
  close(descriptor);
  return name;
}

// "void fastreg::copy<float>(float const*, int)" -> "fastreg::copy<float>"
std::string without_parameters(std::string name) {
  if (!name.empty() && name.back() == ')') {
    int depth = 0;
    for (size_t i = name.size(); i-- > 0;) {
      depth += name[i] == ')' ? 1 : name[i] == '(' ? -1 : 0;
      if (depth == 0) {
        name.resize(i);
        break;
      }
    }
  }
  if (name.compare(0, 5, "void ") == 0) name.erase(0, 5);
  return name;
}

}  // namespace

std::string kernel_name(const void* kernel) {
  static std::map<const void*, std::string> known;
  const auto [entry, is_new] = known.try_emplace(kernel);
  if (is_new) {
    const std::string symbol = find_symbol(kernel);
    int status = -1;
    char* readable = symbol.empty() ? nullptr : abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
    if (readable) {
      entry->second = without_parameters(readable);
    } else {
      char address[32];
      std::snprintf(address, sizeof address, "at %p", kernel);
      entry->second = symbol.empty() ? address : symbol;
    }
    std::free(readable);
  }
  return entry->second;
}

}  // namespace host_executor
