//! Chains of the back end `ops`: any text is understood or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nereid::inference::DataType;
use nereid_fuzz::chain_model;

fuzz_target!(|text: &str| {
    for (datatype, dims) in [
        (DataType::Bytes, &[1][..]),
        (DataType::Uint8, &[-1, -1, 3]),
        (DataType::Fp32, &[-1, 4]),
        (DataType::Int64, &[7]),
    ] {
        let _ = chain_model(text, datatype, dims);
    }
});
