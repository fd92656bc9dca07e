//! Replies of each dialect, cut at every place.

use super::*;

fn tally(route: Infer, is_stream: bool, text: &str) -> Tally {
    let mut tally = Tally::new(route, is_stream);
    tally.push(text.as_bytes());
    for at in 1..text.len() {
        let mut cut = Tally::new(route, is_stream);
        let (head, tail) = text.as_bytes().split_at(at);
        cut.push(head);
        cut.push(tail);
        assert_eq!(
            (cut.n_chunks, cut.n_chars),
            (tally.n_chunks, tally.n_chars),
            "cut at {at}"
        );
    }
    tally
}

#[test]
fn what_a_model_wrote_is_counted_in_every_dialect() {
    for (route, is_stream, text, n_chunks, n_chars) in [
        (
            Infer::Generate,
            true,
            "{\"model\":\"tiny\",\"response\":\" t1\",\"done\":false}\n{\"model\":\"tiny\",\"response\":\" t2\",\"done\":false}\n\
             {\"model\":\"tiny\",\"response\":\"\",\"done\":true,\"context\":[1,2],\"eval_count\":2}\n",
            2,
            6,
        ),
        (
            Infer::Chat,
            false,
            r#"{"model":"content","message":{"role":"assistant","content":"a \"b\"","thinking":"hé"},"done":true}"#,
            2,
            7,
        ),
        (
            Infer::Chat,
            false,
            r#"{"message":{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"city":"Rome"}}}]}}"#,
            1,
            14,
        ),
        (
            Infer::V1Chat,
            true,
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"t1\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":null},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
            1,
            2,
        ),
        (
            Infer::V1Chat,
            false,
            "{\n  \"choices\" : [ {\n \"message\": { \"content\" :\n \"t1 t2\" } } ],\n \"usage\": {\"prompt_tokens\": 3}\n}\n",
            1,
            5,
        ),
        (
            Infer::V1Messages,
            true,
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"t1\"}}\n\n",
            1,
            2,
        ),
        (
            Infer::V1Responses,
            true,
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"t1\"}\n\n\
             data: {\"type\":\"response.output_text.done\",\"text\":\"t1\"}\n\n\
             data: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"content\":[{\"text\":\"t1\"}]}]}}\n\n",
            1,
            2,
        ),
        (
            Infer::V1Responses,
            false,
            r#"{"output":[{"content":[{"type":"output_text","text":"t1 t2"}]}]}"#,
            1,
            5,
        ),
        (
            Infer::Embed,
            false,
            r#"{"model":"e","embeddings":[[0.1,-2e-3]],"prompt_eval_count":2}"#,
            0,
            0,
        ),
    ] {
        let tally = tally(route, is_stream, text);
        assert_eq!(
            (tally.n_chunks, tally.n_chars),
            (n_chunks, n_chars),
            "{text}"
        );
        assert_eq!(tally.n_bytes, u64::try_from(text.len()).unwrap());
    }
}

#[test]
fn tokens_are_pieces_or_four_characters_each() {
    let pieces = "{\"response\":\"a\"}\n".repeat(9);
    assert_eq!(tally(Infer::Generate, true, &pieces).n_tokens(), 9);
    let whole = format!("{{\"response\":\"{}\"}}", "x".repeat(401));
    assert_eq!(tally(Infer::Generate, false, &whole).n_tokens(), 101);
}

#[test]
fn what_is_no_json_upsets_nothing() {
    for text in [
        "\"\"\"\"\\\\\\\"",
        ": comment with a \" quote\ndata: {\"content\":\"a\"}\n\n",
        "}}}}]]]]{\"content\":\"a\"}",
        "\u{fffd}\"content\":::\"a\"",
    ] {
        let _ = tally(Infer::V1Chat, true, text);
    }
    let text = ": comment with a \" quote\ndata: {\"content\":\"a\"}\n\n";
    assert_eq!(
        tally(Infer::V1Chat, true, text).n_chunks,
        1,
        "a line's end mends it"
    );
}
