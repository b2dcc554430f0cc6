//! The broker's state machine: the bytes are a program of what several clients and engines do. What must hold at each
//! step is in `daemon/src/broker/simulation`.

#![no_main]

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    reeld_daemon::simulation::run(program);
});
