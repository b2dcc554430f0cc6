//! The binary `reeld`. All of it is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    reeld_daemon::main()
}
