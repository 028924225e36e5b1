//! NVIDIA's libraries that others need on GPUs: of the versions that PyTorch's package asks for, which are
//! among those that ONNX Runtime's takes.

use super::{Source, Wheel};
use crate::backend::cuda;

pub(super) const CUBLAS: Source = Source {
    project: "nvidia-cublas",
    version: "13.1.0.3",
    platform: "manylinux_2_27",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
    }],
    kept: &[
        ("nvidia/cu13/lib/libcublas.so.13", "nvidia/libcublas.so.13"),
        ("nvidia/cu13/lib/libcublasLt.so.13", "nvidia/libcublasLt.so.13"),
        ("nvidia_cublas-13.1.0.3.dist-info/licenses", "licenses/nvidia-cublas"),
    ],
};

pub(super) const CUDA_RUNTIME: Source = Source {
    project: "nvidia-cuda-runtime",
    version: "13.0.96",
    platform: "manylinux_2_17",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    }],
    kept: &[
        ("nvidia/cu13/lib/libcudart.so.13", "nvidia/libcudart.so.13"),
        ("nvidia_cuda_runtime-13.0.96.dist-info/licenses", "licenses/nvidia-cuda-runtime"),
    ],
};

pub(super) const CUDNN: Source = Source {
    project: "nvidia-cudnn-cu13",
    version: "9.19.0.56",
    platform: "manylinux_2_27",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
    }],
    kept: &[
        ("nvidia/cudnn/lib/libcudnn.so.9", "nvidia/libcudnn.so.9"),
        ("nvidia/cudnn/lib/libcudnn_adv.so.9", "nvidia/libcudnn_adv.so.9"),
        ("nvidia/cudnn/lib/libcudnn_cnn.so.9", "nvidia/libcudnn_cnn.so.9"),
        (
            "nvidia/cudnn/lib/libcudnn_engines_precompiled.so.9",
            "nvidia/libcudnn_engines_precompiled.so.9",
        ),
        (
            "nvidia/cudnn/lib/libcudnn_engines_runtime_compiled.so.9",
            "nvidia/libcudnn_engines_runtime_compiled.so.9",
        ),
        ("nvidia/cudnn/lib/libcudnn_graph.so.9", "nvidia/libcudnn_graph.so.9"),
        ("nvidia/cudnn/lib/libcudnn_heuristic.so.9", "nvidia/libcudnn_heuristic.so.9"),
        ("nvidia/cudnn/lib/libcudnn_ops.so.9", "nvidia/libcudnn_ops.so.9"),
        ("nvidia_cudnn_cu13-9.19.0.56.dist-info/licenses", "licenses/nvidia-cudnn-cu13"),
    ],
};

pub(super) const CUFFT: Source = Source {
    project: "nvidia-cufft",
    version: "12.0.0.61",
    platform: "manylinux_2_17",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
    }],
    kept: &[
        ("nvidia/cu13/lib/libcufft.so.12", "nvidia/libcufft.so.12"),
        ("nvidia_cufft-12.0.0.61.dist-info/licenses", "licenses/nvidia-cufft"),
    ],
};

pub(super) const CUFILE: Source = Source {
    project: "nvidia-cufile",
    version: "1.15.1.6",
    platform: "manylinux_2_17",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
    }],
    kept: &[
        ("nvidia/cu13/lib/libcufile.so.0", "nvidia/libcufile.so.0"),
        ("nvidia_cufile-1.15.1.6.dist-info/licenses", "licenses/nvidia-cufile"),
    ],
};

pub(super) const CUPTI: Source = Source {
    project: "nvidia-cuda-cupti",
    version: "13.0.85",
    platform: "manylinux_2_25",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    }],
    kept: &[
        ("nvidia/cu13/lib/libcupti.so.13", "nvidia/libcupti.so.13"),
        ("nvidia_cuda_cupti-13.0.85.dist-info/licenses", "licenses/nvidia-cuda-cupti"),
    ],
};

pub(super) const CURAND: Source = Source {
    project: "nvidia-curand",
    version: "10.4.0.35",
    platform: "manylinux_2_27",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
    }],
    kept: &[
        ("nvidia/cu13/lib/libcurand.so.10", "nvidia/libcurand.so.10"),
        ("nvidia_curand-10.4.0.35.dist-info/licenses", "licenses/nvidia-curand"),
    ],
};

pub(super) const CUSOLVER: Source = Source {
    project: "nvidia-cusolver",
    version: "12.0.4.66",
    platform: "manylinux_2_27",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
    }],
    kept: &[
        ("nvidia/cu13/lib/libcusolver.so.12", "nvidia/libcusolver.so.12"),
        ("nvidia_cusolver-12.0.4.66.dist-info/licenses", "licenses/nvidia-cusolver"),
    ],
};

pub(super) const CUSPARSE: Source = Source {
    project: "nvidia-cusparse",
    version: "12.6.3.3",
    platform: "manylinux_2_17",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
    }],
    kept: &[
        ("nvidia/cu13/lib/libcusparse.so.12", "nvidia/libcusparse.so.12"),
        ("nvidia_cusparse-12.6.3.3.dist-info/licenses", "licenses/nvidia-cusparse"),
    ],
};

pub(super) const CUSPARSELT: Source = Source {
    project: "nvidia-cusparselt-cu13",
    version: "0.8.0",
    platform: "manylinux2014",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
    }],
    kept: &[("nvidia/cusparselt/lib/libcusparseLt.so.0", "nvidia/libcusparseLt.so.0")],
};

pub(super) const NCCL: Source = Source {
    project: "nvidia-nccl-cu13",
    version: "2.28.9",
    platform: "manylinux_2_18",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
    }],
    kept: &[
        ("nvidia/nccl/lib/libnccl.so.2", "nvidia/libnccl.so.2"),
        ("nvidia_nccl_cu13-2.28.9.dist-info/licenses", "licenses/nvidia-nccl-cu13"),
    ],
};

pub(super) const NVJITLINK: Source = Source {
    project: "nvidia-nvjitlink",
    version: "13.0.88",
    platform: "manylinux_2_12",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
    }],
    kept: &[
        ("nvidia/cu13/lib/libnvJitLink.so.13", "nvidia/libnvJitLink.so.13"),
        ("nvidia_nvjitlink-13.0.88.dist-info/licenses", "licenses/nvidia-nvjitlink"),
    ],
};

pub(super) const NVRTC: Source = Source {
    project: "nvidia-cuda-nvrtc",
    version: cuda::VERSION,
    platform: "manylinux_2_12",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    }],
    kept: &[
        ("nvidia/cu13/lib/libnvrtc.so.13", "nvidia/libnvrtc.so.13"),
        ("nvidia/cu13/lib/libnvrtc-builtins.so.13.0", "nvidia/libnvrtc-builtins.so.13.0"),
        ("nvidia_cuda_nvrtc-13.0.88.dist-info/licenses", "licenses/nvidia-cuda-nvrtc"),
    ],
};

pub(super) const NVSHMEM: Source = Source {
    project: "nvidia-nvshmem-cu13",
    version: "3.4.5",
    platform: "manylinux_2_17",
    wheels: &[Wheel {
        architecture: "x86_64",
        sha256: "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
    }],
    kept: &[
        ("nvidia/nvshmem/lib/libnvshmem_host.so.3", "nvidia/libnvshmem_host.so.3"),
        ("nvidia_nvshmem_cu13-3.4.5.dist-info/licenses", "licenses/nvidia-nvshmem-cu13"),
    ],
};
