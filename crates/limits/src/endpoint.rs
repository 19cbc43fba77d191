//! What is known of one endpoint: its rate, its pause, its backlog flag and its breaker.
//!
//! Pure: times are microseconds given by the caller. The Redis scripts hold the same rules.

use std::time::Duration;

use crate::breaker::{Ask, Breaker, MEMORY};
use crate::gcra::{Gcra, micros};
use crate::{
    BACKLOG_TTL, BreakerChange, BreakerSettings, FinishReport, GateRequest, PUSH_BACK_MAX, RESTART,
    RESTART_REST, Release, ReleaseRequest, Signal, Verdict,
};

/// The state of one endpoint; the default is that of one nothing is known of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    tat: u64,
    /// Zero once it works again.
    pushed_until: u64,
    backlog_until: u64,
    breaker: Breaker,
}

impl Endpoint {
    /// When it is as good as unknown.
    pub(crate) fn expires(&self, now: u64) -> u64 {
        let breaker = match self.breaker {
            Breaker::Closed { failures: 0 } => 0,
            Breaker::Closed { .. } => now + micros(MEMORY),
            Breaker::Open { until: at, .. } | Breaker::HalfOpen { lease_until: at, .. } => {
                at + micros(MEMORY)
            }
        };
        let pushed = match self.pushed_until {
            0 => 0,
            until => until + micros(MEMORY),
        };
        self.tat.max(pushed).max(self.backlog_until).max(breaker)
    }

    /// Whether its breaker is open or half-open.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.breaker, Breaker::Closed { .. })
    }

    /// Whether a delivery that has no done mark may be tried.
    pub(crate) fn gate(&mut self, request: &GateRequest, now: u64) -> Verdict {
        if !request.released {
            if self.backlog_until > now {
                return Verdict::Backlog;
            }
            if let Some(wait) = self.breaker.wait(now) {
                return Verdict::Breaker(Duration::from_micros(wait));
            }
        }
        if self.pushed_until > now {
            return Verdict::Rate(Duration::from_micros(self.pushed_until - now));
        }
        let Some(rate) = request.rate.filter(|_| !request.released) else {
            return Verdict::Go;
        };
        match Gcra::new(rate).take(self.tat, now, 1) {
            Ok(tat) => {
                self.tat = tat;
                Verdict::Go
            }
            Err(wait) => Verdict::Rate(Duration::from_micros(wait)),
        }
    }

    /// Learns what came of a delivery.
    pub(crate) fn finish(
        &mut self,
        report: &FinishReport,
        settings: &BreakerSettings,
        now: u64,
    ) -> BreakerChange {
        if let Signal::PushBack(pause) | Signal::FailureWithPushBack(pause) | Signal::Stalled(pause) =
            report.signal
        {
            self.pushed_until = self.pushed_until.max(now + micros(pause.min(PUSH_BACK_MAX)));
        }
        match report.signal {
            Signal::Success => {
                if self.pushed_until <= now {
                    self.pushed_until = 0;
                }
                return self.breaker.success();
            }
            Signal::Failure | Signal::FailureWithPushBack(_) => {
                return self.breaker.failure(now, report.probe, settings);
            }
            Signal::Backlogged | Signal::Stalled(_) => self.backlog_until = now + micros(BACKLOG_TTL),
            Signal::PushBack(_) | Signal::Neutral => {}
        }
        if report.probe {
            self.breaker.give_back(now);
        }
        BreakerChange::None
    }

    /// How much of the backlog may go.
    pub(crate) fn release(&mut self, request: &ReleaseRequest, now: u64) -> Release {
        let wanted = request.wanted.max(1);
        let answer = self.decide(request, wanted, now);
        let gone = match answer {
            Release::Granted { count, .. } => count,
            Release::Probe => 1,
            Release::Wait(_) => 0,
        };
        let left = request.more || gone < wanted;
        self.backlog_until = if left { now + micros(BACKLOG_TTL) } else { 0 };
        answer
    }

    fn decide(&mut self, request: &ReleaseRequest, wanted: u32, now: u64) -> Release {
        if self.pushed_until > now {
            return Release::Wait(Duration::from_micros(self.pushed_until - now));
        }
        match self.breaker.ask(now) {
            Ask::Pass => {}
            Ask::Probe => return Release::Probe,
            Ask::Wait(wait) => return Release::Wait(Duration::from_micros(wait)),
        }
        let restarts = self.pushed_until > 0 && (wanted > RESTART || request.more);
        let wanted = if restarts { wanted.min(RESTART) } else { wanted };
        let Some(rate) = request.rate else {
            return Release::Granted {
                count: wanted,
                next: if restarts { RESTART_REST } else { Duration::ZERO },
            };
        };
        let grant = Gcra::new(rate).take_up_to(self.tat, now, wanted);
        let next = Duration::from_micros(grant.next);
        if grant.count == 0 {
            return Release::Wait(next);
        }
        self.tat = grant.tat;
        Release::Granted {
            count: grant.count,
            next,
        }
    }
}
