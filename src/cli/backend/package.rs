//! The packages that back ends come from. Raising a version means new hashes: those of the wheels
//! for CPython 3.11, as the package index lists them.

mod nvidia;

use std::path::Path;

use super::InstallError;
use crate::backend::{cuda, onnxruntime, pytorch};

/// What one back end is installed from.
pub(super) struct Package {
    /// The back end's name.
    pub name: &'static str,
    /// The version of the first of its sources, by which the whole is known.
    pub version: &'static str,
    pub sources: &'static [Source],
    /// What it is installed from to run on GPUs too, if that is something else.
    pub gpu_sources: Option<&'static [Source]>,
    /// A library of ours that belongs beside the others, built from this server's source.
    pub companion: Option<Companion>,
    /// Whether an installation of the same package elsewhere can serve as well.
    pub elsewhere: Option<Elsewhere>,
}

/// One package of the index.
pub(super) struct Source {
    pub project: &'static str,
    pub version: &'static str,
    /// The wheels' platform tag without the architecture. It tells the oldest glibc they run on.
    pub platform: &'static str,
    pub wheels: &'static [Wheel],
    /// The files and folders to keep: their paths in the wheel, and in the back end's folder.
    pub kept: &'static [(&'static str, &'static str)],
}

/// One wheel of a [`Source`].
pub(super) struct Wheel {
    pub architecture: &'static str,
    pub sha256: &'static str,
}

/// A library that is taken from beside this program when it is there.
pub(super) struct Companion {
    pub file: &'static str,
    /// How to get it otherwise.
    pub command: &'static str,
}

/// How an installation elsewhere is recognised and remembered.
pub(super) struct Elsewhere {
    /// The library that it must have.
    pub library: &'static str,
    /// The file in the back end's folder that names it.
    pub note: &'static str,
}

impl Package {
    /// What it is installed from, for GPUs or without them.
    ///
    /// # Errors
    /// When it is the same for both.
    pub fn sources_for(&self, gpu: bool) -> Result<&'static [Source], InstallError> {
        match gpu {
            true => self.gpu_sources.ok_or(InstallError::NotForGpus { name: self.name }),
            false => Ok(self.sources),
        }
    }

    /// The library of ours that is not in a folder yet, and how to get it.
    pub fn missing_companion(&self, folder: &Path) -> Option<(&'static str, &'static str)> {
        let companion = self.companion.as_ref()?;
        (!folder.join(companion.file).is_file()).then_some((companion.file, companion.command))
    }
}

/// Torch for the host alone; its wheel holds more.
const TORCH: Source = Source {
    project: "torch",
    version: pytorch::VERSION,
    platform: "manylinux_2_28",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    }],
    kept: &[
        ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
        ("torch/lib/libc10.so", "lib/libc10.so"),
        ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
        ("torch/include", "include"),
        ("torch-2.11.0.dist-info/licenses", "licenses/torch"),
    ],
};

pub(super) const PACKAGES: &[Package] = &[
    Package {
        name: "onnxruntime",
        version: onnxruntime::VERSION,
        sources: &[Source {
            project: "onnxruntime",
            version: onnxruntime::VERSION,
            platform: "manylinux_2_28",
            wheels: &[
                Wheel {
                    architecture: "x86_64",
                    sha256: "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f",
                },
                Wheel {
                    architecture: "aarch64",
                    sha256: "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
                },
            ],
            kept: &[
                ("onnxruntime/capi/libonnxruntime.so.1.31.1", "libonnxruntime.so.1.31.1"),
                (
                    "onnxruntime/capi/libonnxruntime_providers_shared.so",
                    "libonnxruntime_providers_shared.so",
                ),
                ("onnxruntime/LICENSE", "LICENSE"),
                ("onnxruntime/ThirdPartyNotices.txt", "ThirdPartyNotices.txt"),
            ],
        }],
        gpu_sources: Some(&[
            Source {
                project: "onnxruntime-gpu",
                version: onnxruntime::VERSION,
                platform: "manylinux_2_28",
                wheels: &[Wheel {
                    architecture: "x86_64",
                    sha256: "e26c475fe361b2015f45b4b824bd13f0bb20204e59b62814e6f0acd5f3d491a6",
                }],
                kept: &[
                    ("onnxruntime/capi/libonnxruntime.so.1.31.1", "libonnxruntime.so.1.31.1"),
                    (
                        "onnxruntime/capi/libonnxruntime_providers_shared.so",
                        "libonnxruntime_providers_shared.so",
                    ),
                    (
                        "onnxruntime/capi/libonnxruntime_providers_cuda.so",
                        "libonnxruntime_providers_cuda.so",
                    ),
                    (
                        "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
                        "libonnxruntime_providers_tensorrt.so",
                    ),
                    ("onnxruntime/LICENSE", "LICENSE"),
                    ("onnxruntime/ThirdPartyNotices.txt", "ThirdPartyNotices.txt"),
                ],
            },
            nvidia::CUBLAS,
            nvidia::CUDA_RUNTIME,
            nvidia::CUDNN,
            nvidia::CUFFT,
            nvidia::CURAND,
            nvidia::NVJITLINK,
            nvidia::NVRTC,
        ]),
        companion: None,
        elsewhere: None,
    },
    // What runs on the host: the wheel is built with CUDA, of which its library for the host needs
    // two small ones.
    Package {
        name: "pytorch",
        version: pytorch::VERSION,
        sources: &[
            TORCH,
            Source {
                kept: &[
                    ("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13"),
                    ("nvidia_cuda_cupti-13.0.85.dist-info/licenses", "licenses/nvidia-cuda-cupti"),
                ],
                ..nvidia::CUPTI
            },
            Source {
                kept: &[
                    ("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13"),
                    (
                        "nvidia_cuda_runtime-13.0.96.dist-info/licenses",
                        "licenses/nvidia-cuda-runtime",
                    ),
                ],
                ..nvidia::CUDA_RUNTIME
            },
        ],
        gpu_sources: Some(&[
            Source {
                kept: &[
                    ("torch/lib", "lib"),
                    ("torch/include", "include"),
                    ("torch-2.11.0.dist-info/licenses", "licenses/torch"),
                ],
                ..TORCH
            },
            nvidia::CUBLAS,
            nvidia::CUDA_RUNTIME,
            nvidia::CUDNN,
            nvidia::CUFFT,
            nvidia::CUFILE,
            nvidia::CUPTI,
            nvidia::CURAND,
            nvidia::CUSOLVER,
            nvidia::CUSPARSE,
            nvidia::CUSPARSELT,
            nvidia::NCCL,
            nvidia::NVJITLINK,
            nvidia::NVRTC,
            nvidia::NVSHMEM,
        ]),
        companion: Some(Companion { file: pytorch::BRIDGE, command: pytorch::BUILD }),
        elsewhere: Some(Elsewhere { library: "lib/libtorch_cpu.so", note: pytorch::INSTALLATION }),
    },
    // The compiler alone: what it compiles needs a driver and a GPU.
    Package {
        name: "cuda",
        version: cuda::VERSION,
        sources: &[Source {
            kept: &[
                ("nvidia/cu13/lib/libnvrtc.so.13", "libnvrtc.so.13"),
                ("nvidia/cu13/lib/libnvrtc-builtins.so.13.0", "libnvrtc-builtins.so.13.0"),
                ("nvidia_cuda_nvrtc-13.0.88.dist-info/licenses/License.txt", "License.txt"),
            ],
            ..nvidia::NVRTC
        }],
        gpu_sources: None,
        companion: None,
        elsewhere: None,
    },
];
