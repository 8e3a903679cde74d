#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| xbus_fuzz_targets::run("framing", data));
