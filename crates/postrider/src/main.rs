//! The postrider binary (being built).
fn main() {}
