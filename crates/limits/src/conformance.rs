//! What every [`Limits`] must do, as checks that panic; each implementation's tests call [`run`].
//!
//! The checks use ids of their own, so a shared server may hold other things. They run concurrently and need about
//! 11 s of Tokio's time. No check depends on being fast, only on a call taking well under a second.

use std::time::Duration;

use bytes::Bytes;
use postrider_model::{AppId, DeliveryId, EndpointId};
use uuid::Uuid;

use crate::{BreakerSettings, FinishReport, GateRequest, Limits, Rate, ReleaseRequest, Signal, Verdict};

mod claims;
mod endpoints;
mod versions;

/// The settings that the checks expect.
pub const SETTINGS: BreakerSettings = BreakerSettings {
    failures: 3,
    open_for: Duration::from_millis(1_000),
    open_for_max: Duration::from_millis(1_500),
};

/// Runs all checks against an implementation made with [`SETTINGS`].
///
/// # Panics
/// When it does not conform.
pub async fn run(limits: &dyn Limits) {
    tokio::join!(
        claims::quota_is_taken_all_or_none(limits),
        claims::a_repeat_needs_no_quota(limits),
        claims::a_key_is_held_until_it_is_given_up(limits),
        claims::an_abandoned_key_is_taken_over_with_its_id(limits),
        claims::claims_are_made_all_or_none(limits),
        claims::a_finished_claim_ends(limits),
        claims::requests_of_a_batch_are_answered_in_order(limits),
        versions::versions_only_grow_and_are_told(limits),
        endpoints::rate(limits),
        endpoints::done_marks(limits),
        endpoints::breaker_opens_probes_and_closes(limits),
        endpoints::a_success_resets_the_count(limits),
        endpoints::push_back(limits),
        endpoints::a_stall(limits),
        endpoints::after_a_pause_little_goes_until_a_success(limits),
        endpoints::backlog(limits),
        endpoints::release_takes_tokens(limits),
        endpoints::answers_are_in_order(limits),
        empty_batches(limits),
    );
    limits.ping().await.expect("ping");
}

async fn empty_batches(limits: &dyn Limits) {
    assert!(limits.admit(&[]).await.expect("admit").is_empty());
    limits.settle(&[]).await.expect("settle");
    assert!(limits.gate(&[]).await.expect("gate").is_empty());
    assert!(limits.finish(&[]).await.expect("finish").is_empty());
    assert!(limits.release(&[]).await.expect("release").is_empty());
}

/// One endpoint and the calls about it.
struct Fixture<'a> {
    limits: &'a dyn Limits,
    app: AppId,
    endpoint: EndpointId,
    rate: Option<Rate>,
}

impl<'a> Fixture<'a> {
    fn new(limits: &'a dyn Limits) -> Self {
        let (app, endpoint) = (new_app(), EndpointId::from_uuid(Uuid::now_v7()));
        Self {
            limits,
            app,
            endpoint,
            rate: None,
        }
    }

    fn request(&self) -> GateRequest {
        GateRequest {
            app: self.app,
            endpoint: self.endpoint,
            delivery: DeliveryId::from_uuid(Uuid::now_v7()),
            run: 0,
            rate: self.rate,
            released: false,
        }
    }

    async fn gate_of(&self, request: GateRequest) -> Verdict {
        let mut answers = self.limits.gate(&[request]).await.expect("gate");
        assert_eq!(answers.len(), 1);
        answers.remove(0).verdict
    }

    async fn gate(&self) -> Verdict {
        self.gate_of(self.request()).await
    }

    async fn gate_released(&self) -> Verdict {
        self.gate_of(GateRequest {
            rate: None,
            released: true,
            ..self.request()
        })
        .await
    }

    fn report(&self, signal: Signal, probe: bool) -> FinishReport {
        let GateRequest {
            app,
            endpoint,
            delivery,
            run,
            ..
        } = self.request();
        FinishReport {
            app,
            endpoint,
            delivery,
            run,
            probe,
            mark: None,
            signal,
        }
    }

    async fn finish(&self, signal: Signal, probe: bool) -> crate::BreakerChange {
        let report = self.report(signal, probe);
        self.limits.finish(&[report]).await.expect("finish")[0]
    }

    async fn mark(&self, request: &GateRequest, mark: Bytes) {
        let report = self.report(Signal::Success, false);
        let report = FinishReport {
            delivery: request.delivery,
            run: request.run,
            mark: Some(mark),
            ..report
        };
        self.limits.finish(&[report]).await.expect("finish");
    }

    async fn release(&self, wanted: u32, more: bool) -> crate::Release {
        let (app, endpoint, rate) = (self.app, self.endpoint, self.rate);
        let request = ReleaseRequest {
            app,
            endpoint,
            rate,
            wanted,
            more,
        };
        self.limits.release(&[request]).await.expect("release")[0]
    }
}

fn new_app() -> AppId {
    AppId::from_uuid(Uuid::now_v7())
}
