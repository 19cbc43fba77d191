//! What the ledger does: handing out what waits, writing what happened, forgetting what is old.

use crate::setting::{Between, settings};
use crate::values::{ByteSize, Period};

settings! {
    /// Handing waiting deliveries back to the broker.
    Scheduler in "scheduler" {
        /// Shortest time between two looks at an endpoint that has more due than it got.
        tick: Period = Period::millis(20), Between(Period::millis(1), Period::secs(1));
        /// Endpoints looked at in one round.
        batch: u32 = 256, Between(1, 10_000);
        /// Deliveries of one endpoint handed out and not yet recorded.
        out_per_endpoint: u32 = 100, Between(1, 10_000);
        /// How long a delivery that was handed out has for its outcome to be recorded before it is due again; doubles
        /// each time.
        lease: Period = Period::secs(90), Between(Period::secs(45), Period::secs(3_600));
    }
}

settings! {
    /// Writing the journal to the store.
    Recorder in "recorder" {
        /// Records in one batch.
        batch_max_records: usize = 2_000, Between(1, 100_000);
        /// Bytes of frames in one batch.
        batch_max_bytes: ByteSize = ByteSize::mib(8), Between(ByteSize::mib(1), ByteSize::mib(256));
        /// Frames taken from the journal and not yet acknowledged.
        prefetch: u16 = 256, Between(1, 10_000);
    }
}

settings! {
    /// How long what was recorded is kept.
    Retention in "retention" {
        /// Days that payloads are kept. What still waits for its payload then is cancelled, on record.
        payload_days: u32 = 30, Between(1, 3_650);
        /// Days that messages, deliveries and attempts are kept, and applications, endpoints and keys after they were
        /// deleted or revoked.
        log_days: u32 = 90, Between(1, 3_650);
    }
}
