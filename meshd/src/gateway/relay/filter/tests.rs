//! Streams cut at every place give the same, and only a proper end counts as one.

use super::*;

const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\" t1\"}}]}\n\n\
    data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":23,\"completion_tokens\":3}}\n\n\
    data: [DONE]\n\n";

fn run(mut filter: Filter, text: &str, cut: usize) -> (String, End, Counts) {
    let mut out = Vec::new();
    for piece in [&text[..cut], &text[cut..]] {
        out.extend_from_slice(&filter.push(Bytes::copy_from_slice(piece.as_bytes())));
    }
    let end = filter.finish();
    (String::from_utf8(out).unwrap(), end, filter.counts())
}

#[test]
fn events_are_the_same_wherever_they_are_cut() {
    let stripped = CHAT.replace(
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":23,\"completion_tokens\":3}}\n\n",
        "",
    );
    for cut in 0..CHAT.len() {
        let (out, end, counts) = run(Filter::stream(Infer::V1Chat, false), CHAT, cut);
        assert_eq!((out.as_str(), end), (CHAT, End::Complete(Vec::new())));
        assert_eq!((counts.n_prompt, counts.n_output), (Some(23), Some(3)));
        let (out, _, counts) = run(Filter::stream(Infer::V1Chat, true), CHAT, cut);
        assert_eq!(out, stripped);
        assert_eq!(counts.n_output, Some(3));
    }
}

#[test]
fn zeros_in_every_event_of_a_completion_are_taken_out() {
    let text = "data: {\"choices\":[{\"text\":\" t1\"}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":1}}\n\ndata: [DONE]\n\n";
    let (out, _, counts) = run(Filter::stream(Infer::V1Completions, true), text, 10);
    assert_eq!(
        out,
        "data: {\"choices\":[{\"text\":\" t1\"}]}\n\ndata: [DONE]\n\n"
    );
    assert_eq!((counts.n_prompt, counts.n_output), (Some(4), Some(1)));
}

#[test]
fn a_stream_without_its_closing_words_is_broken() {
    let is_broken = |filter: Filter, text: &str| matches!(run(filter, text, 0).1, End::Broken(_));
    assert!(is_broken(
        Filter::stream(Infer::Chat, false),
        "{\"done\":false}\n"
    ));
    assert!(is_broken(Filter::stream(Infer::Chat, false), ""));
    assert!(is_broken(
        Filter::stream(Infer::Chat, false),
        "{\"error\":\"x\"}\n"
    ));
    assert!(!is_broken(
        Filter::stream(Infer::Chat, false),
        "{\"done\":true}\n"
    ));
    assert!(!is_broken(
        Filter::stream(Infer::Chat, false),
        "{\"done\":true}"
    ));
    assert!(is_broken(
        Filter::stream(Infer::V1Chat, false),
        &CHAT.replace("data: [DONE]\n\n", "")
    ));
    assert!(!is_broken(
        Filter::stream(Infer::V1Responses, false),
        "event: response.completed\ndata: {\"type\":\"response.completed\"}\n\n"
    ));
    // What a model says about errors is no error.
    let said = "{\"response\":\"\\\"error\\\"\",\"done\":false}\n{\"done\":true}\n";
    assert!(!is_broken(Filter::stream(Infer::Generate, false), said));
}

#[test]
fn an_error_is_scrubbed_wherever_it_is_cut() {
    let text = "{\"message\":{\"content\":\"{\\\"error\\\"\"},\"done\":false}\n \n{ \"error\" : \"open /home/olga/models/blobs/x: no such file\"}\n";
    let clean = "{\"message\":{\"content\":\"{\\\"error\\\"\"},\"done\":false}\n \n{\"error\":\"open […] no such file\"}\n";
    for text in [text, text.trim_end()] {
        for cut in 0..text.len() {
            let (mut out, end, _) = run(Filter::stream(Infer::Chat, false), text, cut);
            let End::Broken(rest) = end else {
                panic!("an error is no proper end");
            };
            out += std::str::from_utf8(&rest).unwrap();
            assert_eq!(out, clean, "cut at {cut}");
        }
    }
}

#[test]
fn lines_are_the_same_wherever_they_are_cut_and_nothing_waits_for_its_end_that_is_no_error() {
    let text = "{\"response\":\"a\",\"done\":false}\n{\"response\":\"b\",\"done\":false}\n{\"done\":true,\"context\":[1,2]}\n";
    for cut in 0..text.len() {
        let (out, end, _) = run(Filter::stream(Infer::Generate, false), text, cut);
        assert_eq!((out.as_str(), end), (text, End::Complete(Vec::new())));
    }
    let mut filter = Filter::stream(Infer::Generate, false);
    let out = filter.push(Bytes::from_static(b"{\"respon"));
    assert_eq!(out, "{\"respon");
    // One that broke off in its middle leaves nothing of itself.
    let mut filter = Filter::stream(Infer::Generate, false);
    assert_eq!(
        filter.push(Bytes::from_static(b"{\"error\":\"/home/ol")),
        ""
    );
    assert_eq!(filter.finish(), End::Broken(Vec::new()));
}
