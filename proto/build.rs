//! Compiles the .proto files without a system `protoc`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 2] = ["continuum/v1/operator.proto", "continuum/v1/coordination.proto"];
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
