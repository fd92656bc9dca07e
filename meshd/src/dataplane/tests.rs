//! How packet threads end.

use super::*;

/// What the daemon's loop is told of a thread's end, if anything.
fn told(body: impl FnOnce() -> io::Result<()> + Send + 'static) -> Option<String> {
    let (ended_tx, mut ended) = mpsc::channel(1);
    let thread = start_thread("mesh-7".to_owned(), &ended_tx, body).unwrap();
    let _ = thread.join();
    ended.try_recv().ok()
}

#[test]
fn a_panic_of_a_packet_thread_is_told_by_its_name() {
    let text = told(|| panic!("this panic is the test's"));
    assert_eq!(text.as_deref(), Some("packet thread mesh-7 panicked"));
}

#[test]
fn an_error_of_a_packet_thread_is_told() {
    let text = told(|| Err(io::Error::other("no more")));
    assert_eq!(text.as_deref(), Some("packet thread mesh-7 ended: no more"));
}

#[test]
fn a_thread_that_was_asked_to_end_is_not_told_of() {
    assert_eq!(told(|| Ok(())), None);
}
