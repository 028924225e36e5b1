//! The packages that back ends come from. Raising a version means new hashes: those of the wheels
//! for CPython 3.11, as the package index lists them.

use crate::backend::{cuda, onnxruntime};

/// The package of one back end.
pub(super) struct Package {
    /// The back end's name.
    pub name: &'static str,
    /// The package's name in the index.
    pub project: &'static str,
    pub version: &'static str,
    /// The wheels' platform tag without the architecture. It tells the oldest glibc they run on.
    pub platform: &'static str,
    pub wheels: &'static [Wheel],
    /// The files to keep, by their paths in the wheel; they all land in one folder.
    pub files: &'static [&'static str],
}

/// One wheel of a [`Package`].
pub(super) struct Wheel {
    pub architecture: &'static str,
    pub sha256: &'static str,
}

pub(super) const PACKAGES: &[Package] = &[
    Package {
        name: "onnxruntime",
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
        files: &[
            "onnxruntime/capi/libonnxruntime.so.1.31.1",
            "onnxruntime/capi/libonnxruntime_providers_shared.so",
            "onnxruntime/LICENSE",
            "onnxruntime/ThirdPartyNotices.txt",
        ],
    },
    // The compiler alone: what it compiles needs a driver and a GPU.
    Package {
        name: "cuda",
        project: "nvidia-cuda-nvrtc",
        version: cuda::VERSION,
        platform: "manylinux_2_12",
        wheels: &[Wheel {
            architecture: "x86_64",
            sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        }],
        files: &[
            "nvidia/cu13/lib/libnvrtc.so.13",
            "nvidia/cu13/lib/libnvrtc-builtins.so.13.0",
            "nvidia_cuda_nvrtc-13.0.88.dist-info/licenses/License.txt",
        ],
    },
];
