//! Compiles `proto/` without a system `protoc`.

use std::error::Error;

const ROOT: &str = "../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let files = protox::compile(["postrider/v1/frame.proto"], [ROOT])?;
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
