//! Bounds of one request, as tables.

use serde_json::json;

use super::*;

fn object(value: Value) -> Object {
    let Value::Object(object) = value else {
        panic!("{value}");
    };
    object
}

fn caps(output: u32, context: u32, images: u32) -> Caps {
    Caps {
        output_tokens: (output > 0).then_some(output),
        context_tokens: (context > 0).then_some(context),
        images: (images > 0).then_some(images),
        body_mib: None,
    }
}

#[test]
fn output_is_lowered_on_every_route() {
    for (route, body, want) in [
        (
            Infer::Chat,
            json!({}),
            json!({ "options": { "num_predict": 100 } }),
        ),
        (
            Infer::Generate,
            json!({ "options": { "num_predict": 32768, "seed": 1 } }),
            json!({ "options": { "num_predict": 100, "seed": 1 } }),
        ),
        (
            Infer::Generate,
            json!({ "options": { "num_predict": 7 } }),
            json!({ "options": { "num_predict": 7 } }),
        ),
        (Infer::V1Chat, json!({}), json!({ "max_tokens": 100 })),
        (
            Infer::V1Chat,
            json!({ "max_completion_tokens": 900 }),
            json!({ "max_completion_tokens": 100 }),
        ),
        (
            Infer::V1Chat,
            json!({ "max_completion_tokens": 9, "max_tokens": 900 }),
            json!({ "max_completion_tokens": 9, "max_tokens": 100 }),
        ),
        (
            Infer::V1Completions,
            json!({ "max_tokens": 900.5 }),
            json!({ "max_tokens": 100 }),
        ),
        (
            Infer::V1Messages,
            json!({ "max_tokens": 99 }),
            json!({ "max_tokens": 99 }),
        ),
        (
            Infer::V1Responses,
            json!({}),
            json!({ "max_output_tokens": 100 }),
        ),
        (Infer::V1Embeddings, json!({}), json!({})),
        (Infer::Embed, json!({}), json!({})),
    ] {
        let mut body = object(body);
        apply(&caps(100, 0, 0), route, &mut body, Size::default()).unwrap();
        assert_eq!(Value::Object(body.clone()), want, "{route:?}");
        assert!(n_output_max(route, &body) <= 100, "{route:?}");
        let before = body.clone();
        apply(&Caps::default(), route, &mut body, Size::default()).unwrap();
        assert_eq!(body, before, "without bounds nothing changes");
    }
}

#[test]
fn pictures_and_text_are_measured_apart() {
    let picture = format!("data:image/png;base64,{}", "A".repeat(999));
    for (body, n_chars, n_images) in [
        (
            json!({ "model": "tiny", "prompt": "hé!", "options": { "stop": ["long"] } }),
            3,
            0,
        ),
        (json!({ "prompt": "hi", "images": ["AAAA", "BBBB"] }), 2, 2),
        (
            json!({ "messages": [{ "role": "user", "content": "hi", "images": ["AAAA"] }] }),
            6,
            1,
        ),
        (
            json!({ "messages": [{ "role": "u", "content": [{ "type": "image_url", "image_url": { "url": picture } }] }] }),
            10,
            1,
        ),
        (
            json!({ "messages": [{ "role": "u", "content": [{ "type": "image", "source": { "type": "base64", "data": "AAAA" } }] }] }),
            12,
            1,
        ),
    ] {
        let size = Size::of(&object(body.clone()));
        assert_eq!((size.n_chars, size.n_images), (n_chars, n_images), "{body}");
    }
}

#[test]
fn what_cannot_be_lowered_is_refused() {
    let size = |n_chars, n_images| Size { n_chars, n_images };
    for (size, is_refused) in [
        (size(8_000, 2), false),
        (size(8_001, 0), true),
        (size(0, 3), true),
    ] {
        let applied = apply(&caps(0, 1_000, 2), Infer::Chat, &mut Object::new(), size);
        assert_eq!(applied.is_err(), is_refused, "{size:?}");
    }
    let one = Caps {
        body_mib: Some(1),
        ..Caps::default()
    };
    assert!(check_body(&one, 1 << 20).is_ok());
    assert_eq!(
        check_body(&one, (1 << 20) + 1).unwrap_err().status.as_u16(),
        413
    );
    assert!(check_body(&Caps::default(), usize::MAX).is_ok());
}

#[test]
fn the_lesser_context_holds() {
    for (cap, of_model, want) in [
        (0, 4_096, 4_096),
        (2_048, 4_096, 2_048),
        (8_192, 4_096, 4_096),
        (2_048, 0, 2_048),
        (0, 0, 0),
    ] {
        assert_eq!(context(&caps(0, cap, 0), of_model), want);
    }
}
