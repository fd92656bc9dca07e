//! Every call of Ollama, and spellings of them.

use super::*;

#[test]
fn inference_and_lists_are_admitted() {
    for route in Infer::ALL {
        assert_eq!(admit(&Method::POST, route.path()), Ok(Route::Infer(route)));
    }
    for (method, path, want) in [
        (Method::HEAD, "/", Route::Root),
        (Method::GET, "/", Route::Root),
        (Method::HEAD, "/api/version", Route::Version),
        (Method::HEAD, "/api/tags", Route::Tags),
        (Method::GET, "/api/ps", Route::Ps),
        (Method::POST, "/api/show", Route::Show),
        (Method::GET, "/api/status", Route::Status),
        (Method::GET, "/v1/models", Route::Models),
        (
            Method::GET,
            "/v1/models/tiny:1b",
            Route::Model("tiny:1b".to_owned()),
        ),
        (
            Method::GET,
            "/api/experimental/model-recommendations",
            Route::Recommendations,
        ),
    ] {
        assert_eq!(admit(&method, path), Ok(want), "{method} {path}");
    }
}

#[test]
fn another_method_is_refused_with_the_right_one() {
    for (method, path, allow) in [
        (Method::HEAD, "/api/ps", "GET"),
        (Method::HEAD, "/v1/models", "GET"),
        (Method::GET, "/api/chat", "POST"),
        (Method::DELETE, "/api/tags", "GET, HEAD"),
        (Method::OPTIONS, "/api/chat", "POST"),
        (Method::CONNECT, "/api/chat", "POST"),
    ] {
        let refusal = admit(&method, path).unwrap_err();
        assert_eq!(
            refusal.status,
            StatusCode::METHOD_NOT_ALLOWED,
            "{method} {path}"
        );
        assert_eq!(refusal.allow, Some(allow), "{method} {path}");
    }
}

#[test]
fn what_belongs_to_the_owner_is_refused_in_any_method() {
    for path in [
        "/api/pull",
        "/api/push",
        "/api/create",
        "/api/copy",
        "/api/delete",
        "/api/blobs/sha256:00",
        "/api/me",
        "/api/signout",
        "/api/user/keys/1",
        "/api/experimental/web_search",
        "/api/experimental/web_fetch",
        "/v1/audio/transcriptions",
    ] {
        for method in [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::DELETE,
        ] {
            let refusal = admit(&method, path).unwrap_err();
            assert_eq!(refusal.status, StatusCode::FORBIDDEN, "{method} {path}");
        }
    }
}

#[test]
fn another_spelling_of_a_path_is_another_path() {
    for path in [
        "",
        "*",
        "/api/%74ags",
        "/api/%63hat",
        "//api/chat",
        "/api//chat",
        "/api/./chat",
        "/api/../api/chat",
        "/x/../api/chat",
        "/api/chat/",
        "/API/chat",
        "/api/Chat",
        "/api/chat;x",
        "/api/chat%00",
        "/api/chat%2f",
        "/api\\chat",
        "/v1",
        "/v1/",
        "/v1/models/",
        "/v1/models/library%2Ftiny",
        "/v1/models/../../api/pull",
        "/v1/models/a/b",
        "/v1/messages/count_tokens",
        "/metrics",
        "/props",
        "/slots",
        "/health",
        "/debug/pprof/",
        "/invocations",
        "/api/v1/models/load",
    ] {
        for method in [Method::GET, Method::HEAD, Method::POST] {
            let refusal = admit(&method, path).unwrap_err();
            assert_eq!(refusal.status, StatusCode::NOT_FOUND, "{method} {path}");
        }
    }
}

#[test]
fn names_of_cloud_models_are_known_in_any_case() {
    for name in [
        "x:cloud",
        "gpt-oss:120b-cloud",
        "X:CLOUD",
        " x:Cloud ",
        "a/b:1b-cloud",
    ] {
        assert!(is_cloud_name(name), "{name}");
    }
    for name in ["cloud", "cloudy", "nimbus:cloud9", "x:cloud-1"] {
        assert!(!is_cloud_name(name), "{name}");
    }
}
