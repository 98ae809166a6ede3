//! `openapi.json` says what the server does: the same routes, and examples that are taken.

use std::collections::BTreeSet;

use serde_json::Value;

use super::serve::Serving;

fn document() -> Value {
    serde_json::from_str(cosyvoice::server::openapi()).expect("JSON")
}

#[test]
fn its_routes_are_the_routers() {
    let document = document();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    let routed: BTreeSet<(String, String)> = cosyvoice::server::routes()
        .into_iter()
        .map(|(m, p)| (m.to_owned(), p.to_owned()))
        .collect();
    assert_eq!(described, routed);
}

#[test]
fn every_reference_points_to_something_and_every_id_is_unique() {
    fn references(node: &Value, found: &mut Vec<String>) {
        match node {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("a local reference");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    let operations = document["paths"].as_object().unwrap().values();
    let ids: Vec<&Value> = operations
        .flat_map(|methods| methods.as_object().unwrap().values())
        .map(|operation| &operation["operationId"])
        .collect();
    let unique: BTreeSet<&str> = ids.iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!(unique.len(), ids.len());
}

#[test]
fn its_examples_are_taken_by_the_routes_that_show_them() {
    let document = document();
    let server = Serving::new(&[]);
    let client = server.client();
    let mut sent = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let Some(reference) = methods["post"]["requestBody"]["$ref"].as_str() else {
            continue;
        };
        let body =
            &document.pointer(&reference[1..]).unwrap()["content"]["application/json"]["schema"];
        let schema = document
            .pointer(&body["$ref"].as_str().unwrap()[1..])
            .unwrap();
        for example in schema["examples"].as_array().into_iter().flatten() {
            let status = client.post(path, example).status;
            assert!(
                [200, 202].contains(&status),
                "{path} answers {status} to {example}"
            );
            sent += 1;
        }
    }
    assert!(sent >= 12, "{sent}");
}

#[test]
fn answers_have_the_fields_that_their_schemas_require() {
    let document = document();
    let server = Serving::new(&[]);
    let client = server.client();
    let id = client.submit(
        "/api/v1/async/synthesize/sft",
        &serde_json::json!({"text": "Hi", "voice_id": "pretrained_voice_001"}),
    );
    client.wait(&id);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let schema = &methods["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        let named = schema["$ref"]
            .as_str()
            .and_then(|r| document.pointer(&r[1..]));
        let Some(required) = named.unwrap_or(schema)["required"].as_array() else {
            continue;
        };
        let path = path
            .replace("{task_id}", &id)
            .replace("{voice_id}", "pretrained_voice_001");
        let reply = client.get(&path);
        assert_eq!(reply.status, 200, "{path}");
        for field in required {
            assert!(
                reply.json().get(field.as_str().unwrap()).is_some(),
                "{path} lacks {field}"
            );
        }
    }
}

#[test]
fn pages_are_for_browsers_and_need_no_other_host() {
    let server = Serving::new(&[]);
    let client = server.client();
    let program = client.get("/").json();
    assert_eq!(program["docs"], "/docs");
    assert!(program["endpoints"].as_array().unwrap().len() > 30);
    for path in ["/", "/docs"] {
        let page = client.send("GET", path, &[("accept", "text/html,*/*")], b"");
        assert_eq!(page.status, 200);
        assert!(page.header("content-type").starts_with("text/html"));
        assert!(
            page.header("content-security-policy")
                .contains("default-src 'none'")
        );
        let text = String::from_utf8(page.body).unwrap();
        assert!(text.contains("<title>CosyVoice2"));
        let outside = text.match_indices("http").filter(|(at, _)| {
            let rest = &text[*at..];
            (rest.starts_with("http://") || rest.starts_with("https://"))
                && !rest.starts_with("http://www.w3.org/2000/svg")
        });
        assert_eq!(outside.count(), 0, "{path} names another host");
    }
}
