// A stand-in for NVRTC (libnvrtc.so) beside the one for the driver: it compiles a source for the
// processor, over the shim of `kernels/`, and what it gives for PTX names the library that came out.
// CUDA_STANDIN_SHIM is the folder of the shim, CUDA_STANDIN_FOLDER where the libraries go.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>

#define NVRTC extern "C" __attribute__((visibility("default"))) int

namespace {

constexpr int SUCCESS = 0;
constexpr int COMPILATION = 6;

struct Program {
    std::string source, ptx, log;
};

std::string read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

int copy(const std::string& from, char* to) {
    std::memcpy(to, from.c_str(), from.size() + 1);
    return SUCCESS;
}

}  // namespace

NVRTC nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

extern "C" __attribute__((visibility("default"))) const char* nvrtcGetErrorString(int result) {
    return result == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_SUCCESS";
}

NVRTC nvrtcCreateProgram(Program** program, const char* source, const char*, int, const char* const*,
                         const char* const*) {
    *program = new Program{source, "", ""};
    return SUCCESS;
}

NVRTC nvrtcCompileProgram(Program* program, int, const char* const*) {
    const char* folder = std::getenv("CUDA_STANDIN_FOLDER");
    std::string place = std::string(folder ? folder : "/tmp") + "/cuda-standin-XXXXXX";
    if (!mkdtemp(place.data())) return COMPILATION;
    std::ofstream wrapper(place + "/main.cpp");
    wrapper << "#include \"cuda.h\"\n" << program->source << "\n";
    const std::regex kernel("__global__\\s+void\\s+(\\w+)\\s*\\(");
    const std::sregex_iterator all(program->source.begin(), program->source.end(), kernel), end;
    for (auto each = all; each != end; ++each) wrapper << "ENTRY(" << (*each)[1] << ")\n";
    wrapper.close();
    const char* shim = std::getenv("CUDA_STANDIN_SHIM");
    const std::string here = shim ? shim : ".";
    const std::string command = "c++ -std=c++17 -O1 -fPIC -shared -w -I " + here + " " + place + "/main.cpp " + here +
                                "/fibers.cpp -o " + place + "/kernels.so 2> " + place + "/log";
    const int outcome = std::system(command.c_str());
    program->log = read(place + "/log");
    program->ptx = "// stand-in library " + place + "/kernels.so\n";
    return outcome == 0 ? SUCCESS : COMPILATION;
}

NVRTC nvrtcGetProgramLogSize(Program* program, std::size_t* size) {
    *size = program->log.size() + 1;
    return SUCCESS;
}

NVRTC nvrtcGetProgramLog(Program* program, char* log) { return copy(program->log, log); }

NVRTC nvrtcGetPTXSize(Program* program, std::size_t* size) {
    *size = program->ptx.size() + 1;
    return SUCCESS;
}

NVRTC nvrtcGetPTX(Program* program, char* ptx) { return copy(program->ptx, ptx); }

NVRTC nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}
