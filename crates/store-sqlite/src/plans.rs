//! The plans of the lists: each seeks in an index and reads in its order, so that a page costs the same in a large
//! store as in a small one.

use postrider_model::{AttemptId, EndpointId, MessageId, UnixMillis};
use postrider_store::{AttemptFilter, Page};
use rusqlite::Connection;

use crate::codec::Walk;
use crate::config::apps;
use crate::log::{attempts, deliveries, messages};
use crate::schema;
use crate::upkeep::by_time;
use crate::waiting::counts;

/// The steps of a statement's plan that touch tables, in words.
fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection
        .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
        .expect("the statement is valid");
    statement
        .raw_query()
        .mapped(|row| row.get::<_, String>(3))
        .collect::<rusqlite::Result<Vec<_>>>()
        .expect("a plan")
}

fn seeks(connection: &Connection, sql: &str, index: &str) {
    let steps = plan(connection, sql);
    let first = &steps[0];
    assert!(first.starts_with("SEARCH") && first.contains(index), "{steps:#?}");
    for step in &steps {
        let scans = step.starts_with("SCAN") && !step.contains("json_each");
        // Sorting by the last terms of an order is among the few deliveries of one message to one endpoint.
        let sorts = step.contains("TEMP B-TREE FOR ORDER BY");
        assert!(!scans && !sorts, "{steps:#?}");
    }
}

#[test]
fn every_list_walks_an_index() {
    let mut connection = Connection::open_in_memory().expect("a database");
    schema::migrate(&mut connection).expect("a schema");
    let message = Some(MessageId::floor(UnixMillis(1)));
    let endpoint = Some(EndpointId::floor(UnixMillis(1)));
    for descending in [false, true] {
        let walk = Walk::of(&Page::<AttemptId> {
            after: None,
            backwards: false,
            descending,
            limit: 50,
        });
        seeks(
            &connection,
            &messages::list_sql(&walk),
            "messages_app (app=? AND id>? AND id<?)",
        );
        let index = "deliveries_endpoint (endpoint=? AND (message,id)>(?,?) AND (message,id)<(?,?))";
        seeks(&connection, &deliveries::of_endpoint_sql(&walk), index);
        let index = "PRIMARY KEY (message=? AND (endpoint,id)>(?,?) AND (endpoint,id)<(?,?))";
        seeks(&connection, &deliveries::of_message_sql(&walk), index);
        for (message, endpoint, index) in [
            (None, endpoint, "attempts_endpoint (endpoint=? AND id>? AND id<?)"),
            (message, None, "PRIMARY KEY (message=? AND id>? AND id<?)"),
            (message, endpoint, "PRIMARY KEY (message=? AND id>? AND id<?)"),
        ] {
            let filter = AttemptFilter {
                message,
                endpoint,
                ..AttemptFilter::default()
            };
            let sql = attempts::list_sql(&filter, &walk).expect("a list");
            seeks(&connection, &sql, index);
        }
    }
}

#[test]
fn what_changed_is_found_by_its_number() {
    let mut connection = Connection::open_in_memory().expect("a database");
    schema::migrate(&mut connection).expect("a schema");
    seeks(&connection, apps::CHANGED, "applications_changed (changed>?)");
}

#[test]
fn what_was_deleted_is_found_by_its_time() {
    let mut connection = Connection::open_in_memory().expect("a database");
    schema::migrate(&mut connection).expect("a schema");
    for (sql, index) in [
        (by_time::ENDPOINTS, "endpoints_deleted (deleted_at<?)"),
        (by_time::APPLICATIONS, "applications_deleted (deleted_at<?)"),
        (by_time::KEYS, "api_keys_revoked (revoked_at<?)"),
    ] {
        let steps = plan(&connection, sql);
        assert!(steps.iter().any(|step| step.contains(index)), "{steps:#?}");
    }
}

#[test]
fn the_busiest_endpoints_are_told_by_few_counters() {
    let mut connection = Connection::open_in_memory().expect("a database");
    schema::migrate(&mut connection).expect("a schema");
    let steps = plan(&connection, counts::BUSIEST);
    assert!(
        steps
            .iter()
            .any(|step| step.starts_with("SEARCH c USING INDEX counters_open")),
        "{steps:#?}"
    );
    for step in steps.iter().filter(|step| step.contains(" w ")) {
        let seeks = step.contains("USING COVERING INDEX waiting_due (endpoint=? AND leased=?)");
        assert!(step.starts_with("SEARCH") && seeks, "{steps:#?}");
    }
}
