//! Compiles what tch does not offer against the headers in `$LIBTORCH/include`.

use std::{env, fs, path::PathBuf};

fn main() {
    const SOURCES: [&str; 3] = ["src/host_memory.cpp", "src/inspect.cpp", "src/libtorch.cpp"];
    for file in SOURCES.iter().chain(&["src/libtorch.h"]) {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = env::var_os("LIBTORCH").map(PathBuf::from);
    let libtorch = libtorch.expect("LIBTORCH names the folder that holds torch's include and lib");
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // Torch's own headers warn.
        .flag("-isystem")
        .flag(&include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"))
        .files(SOURCES)
        .compile("nereid_libtorch");

    // torch-sys asks the linker for a `libtorch.so`, which in torch's packages draws in CUDA; the
    // two libraries that hold what is used are enough.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let stand_in = out.join("libtorch.so");
    fs::write(&stand_in, "INPUT(-ltorch_cpu -lc10)\n").expect("OUT_DIR can be written");
    println!("cargo:rustc-link-search=native={}", out.display());
    // Beside it, or in the folder `lib` of the same installation.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-rpath,$ORIGIN:$ORIGIN/lib");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--as-needed");
    println!("cargo:rustc-link-arg-examples=-Wl,-rpath,{}", libtorch.join("lib").display());
    println!("cargo:rustc-link-arg-examples=-Wl,--as-needed");
}
