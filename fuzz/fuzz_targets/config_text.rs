//! `config.pbtxt` files: what is read is written as JSON and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nereid::repository::{from_json, parse_config, to_json};

fuzz_target!(|text: &str| {
    if let Ok(config) = parse_config(text) {
        let again = from_json(&to_json(&config)).expect("our own JSON is read back");
        assert_eq!(to_json(&again), to_json(&config));
    }
});
