//! Compiles the frozen schema of the first wire version, with which the upgrade tests speak as an old process does.

use std::error::Error;

const ROOT: &str = "frozen/v1";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let files = protox::compile(["postrider/v1/frame.proto"], [ROOT])?;
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}
