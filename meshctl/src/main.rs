//! `meshctl`: the command line of Proxima Network.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    meshctl::run()
}
