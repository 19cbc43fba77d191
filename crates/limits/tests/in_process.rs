//! The in-process implementation and the fall-back over it pass the conformance suite.

use std::sync::Arc;

use postrider_limits::{Fallback, InProcess, conformance};

#[tokio::test(start_paused = true)]
async fn in_process_conforms() {
    conformance::run(&InProcess::new(conformance::SETTINGS)).await;
}

#[tokio::test(start_paused = true)]
async fn a_fallback_over_a_working_one_conforms() {
    let shared = Arc::new(InProcess::new(conformance::SETTINGS));
    let local = InProcess::new(conformance::SETTINGS);
    conformance::run(&Fallback::new(shared, local, 3, |what| {
        panic!("{what} was answered locally")
    }))
    .await;
}
