//! What every store must do, as checks that panic where it does not.
//!
//! [`store_conformance!`](crate::store_conformance) makes a test of each. A check gets an empty store of its own, whose schema is up to date and
//! which disables endpoints after 5 days of failures. Waits are bounded by [`PATIENCE`].

use std::time::Duration;

pub mod config;
pub mod cut;
pub mod deliveries;
mod fixture;
pub mod leases;
pub mod log;
pub mod ordered;
pub mod orphans;
pub mod ready;
pub mod record;
pub mod reseal;
pub mod retention;
pub mod suspects;
pub mod sweeps;
pub mod tasks;
pub mod versions;
pub mod waiting;

/// How long a check waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Makes one test of each check. The argument names an `async fn() -> (SharedStore, guard)`; the guard lives as long
/// as the test.
#[macro_export]
macro_rules! store_conformance {
    ($make:ident) => {
        $crate::store_conformance! { $make;
            config {
                applications_are_created_changed_and_deleted,
                uids_are_unique_among_the_living,
                endpoints_round_trip,
                what_endpoints_take_is_counted,
                lists_page_both_ways,
                event_types_live_by_name,
                keys_are_found_by_hash_until_revoked,
                a_claim_is_kept_until_it_is_dropped_or_ends,
            }
            versions {
                every_change_raises_the_version,
                a_snapshot_is_of_one_version,
                what_changed_since_is_told,
                no_change_falls_between_two_answers,
                a_stale_update_changes_nothing,
                no_concurrent_update_is_lost,
            }
            record {
                a_batch_recorded_twice_is_recorded_once,
                an_outcome_may_come_before_its_message,
                an_outcome_of_an_earlier_run_is_stale,
                a_success_of_an_earlier_run_ends_the_delivery,
                terminal_states_are_final,
                counters_follow_the_states,
                gone_disables_the_endpoint,
                days_of_failures_disable_the_endpoint,
                an_old_failure_begins_no_days_of_failures,
                a_resumed_endpoint_has_failed_for_no_time,
                an_exhausted_delivery_pauses_where_the_policy_says_so,
                claims_stand_until_they_expire,
                any_bytes_survive,
                a_large_batch_is_recorded_whole,
                concurrent_batches_do_not_disturb_each_other,
            }
            waiting {
                what_is_due_is_claimed_and_leased,
                a_claim_keeps_others_off,
                a_grant_paces_its_endpoint,
                what_waits_is_counted_by_reason,
            }
            leases {
                rows_are_leased_in_order_of_due_time,
                an_expired_lease_is_due_again_and_the_next_is_longer,
                an_expired_lease_waits_for_a_journal_that_is_behind,
                what_is_given_back_is_due_again,
                fresh_deliveries_are_not_handed_out,
                a_cancelled_head_lets_the_next_one_go,
                several_schedulers_never_lease_the_same_run,
                a_row_whose_message_is_missing_waits_for_it,
                a_delivery_without_payload_is_cancelled,
                a_restart_releases_every_lease,
            }
            suspects {
                deaths_are_counted_until_an_outcome,
                suspects_go_one_at_a_time_until_parked,
                a_suspect_in_a_sequence_goes_alone,
                a_trial_is_begun_once,
            }
            ordered {
                a_run_comes_from_the_head_in_order,
                nothing_else_goes_while_a_lease_is_out,
                a_head_that_waits_blocks_the_rest,
                a_removed_head_lets_the_next_go,
                what_waited_before_it_was_ordered_goes_run_after_run,
                a_retry_from_before_it_was_ordered_holds_up_nothing,
                an_expired_lease_without_a_place_is_due_again,
            }
            sweeps {
                a_paused_endpoint_keeps_what_waits,
                a_disabled_endpoint_is_swept,
                deleted_endpoints_and_applications_are_swept,
                idle_endpoints_of_a_deleted_application_hold_up_nobody,
                an_endpoint_enabled_in_time_keeps_the_rest,
                parked_rows_are_kept_and_taken,
                the_schema_is_current,
            }
            tasks {
                a_recovery_delivers_again_what_failed,
                every_task_has_its_turn,
                a_recovery_keeps_the_order,
                a_replay_delivers_what_never_came,
                a_task_passes_over_what_has_no_payload,
                a_task_of_a_deleted_endpoint_fails,
            }
            orphans {
                orphans_are_counted,
                orphans_of_days_ago_are_cancelled,
            }
            ready {
                only_what_could_go_now_is_ready,
                a_full_endpoint_is_looked_at_when_a_lease_ends,
            }
            retention {
                payloads_expire_on_record,
                a_message_may_have_a_retention_of_its_own,
                many_with_a_retention_of_their_own_hold_up_nobody,
                a_young_payload_stays,
                claims_that_ended_go,
                old_records_go,
                what_was_deleted_goes_after_its_record,
            }
            deliveries {
                deliveries_of_an_endpoint_are_filtered,
                deliveries_of_a_message_page,
                deliveries_of_one_message_to_one_endpoint_page,
            }
            cut {
                a_page_of_large_payloads_is_cut,
                a_page_of_large_parked_rows_is_cut,
                a_filter_that_keeps_little_ends_its_page,
            }
            log {
                five_hundred_messages_page_both_ways,
                messages_are_filtered,
                attempts_are_filtered,
                attempts_page,
                one_message_and_one_attempt_are_found,
                expunging_removes_bytes_and_nothing_else,
            }
        }
    };
    ($make:ident; $($module:ident { $($check:ident),+ $(,)? })+) => {$(
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $check() {
                    let (store, _guard) = super::$make().await;
                    $crate::conformance::$module::$check(store.clone()).await;
                    store.close().await;
                }
            )+
        }
    )+};
}
