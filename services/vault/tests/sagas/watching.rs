//! Watch streams: a snapshot, then every change once and in order.

use super::*;
use pb::watch_event::Event;
use tonic::Streaming;

async fn next(stream: &mut Streaming<pb::WatchEvent>) -> pb::WatchEvent {
    let event = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("in time");
    event.expect("the stream holds").expect("the stream goes on")
}

/// Reads to the end of the snapshot; returns its sequence, the run, and how many entities it had.
async fn snapshot_of(stream: &mut Streaming<pb::WatchEvent>) -> (u64, String, usize) {
    let first = next(stream).await;
    let Some(Event::SnapshotBegin(begin)) = first.event else { panic!("no snapshot: {first:?}") };
    let mut entities = 0;
    loop {
        let event = next(stream).await;
        assert_eq!(event.sequence, first.sequence);
        match event.event {
            Some(Event::Changed(_)) => entities += 1,
            Some(Event::SnapshotEnd(_)) => return (first.sequence, begin.run, entities),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_resumes_where_it_was_in_this_run_and_starts_over_in_another() {
    let mut lab = Lab::start().await;
    let kinds = vec![pb::Kind::Job as i32, pb::Kind::Machine as i32];
    let mut stream = lab
        .operator
        .clone()
        .watch(pb::WatchRequest { kinds: kinds.clone(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let (at, run, entities) = snapshot_of(&mut stream).await;
    assert_eq!(entities, 1, "one machine, no jobs");
    let job = lab.protect().await;
    let mut seen = Vec::new();
    loop {
        let event = next(&mut stream).await;
        if let Some(Event::Changed(pb::Entity { entity: Some(Entity::Job(change)) })) = &event.event {
            assert_eq!(change.id, job.id);
            seen.push(change.state.clone());
        }
        assert!(event.sequence > at);
        if seen.last().is_some_and(|state| state == "succeeded") {
            break;
        }
    }
    assert_eq!(seen.first().map(String::as_str), Some("queued"));

    let request = pb::WatchRequest { kinds: kinds.clone(), after_sequence: at, run: run.clone() };
    let mut again = lab.operator.clone().watch(request.clone()).await.unwrap().into_inner();
    let first = next(&mut again).await;
    assert!(first.sequence > at && matches!(first.event, Some(Event::Changed(_))), "no snapshot: {first:?}");

    lab.restart().await;
    let mut other = lab.operator.clone().watch(request).await.unwrap().into_inner();
    let (_, new_run, entities) = snapshot_of(&mut other).await;
    assert_ne!(run, new_run);
    assert_eq!(entities, 2, "the machine and its job");
}
