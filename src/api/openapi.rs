//! The OpenAPI 3.1 document of the admin API, made from [`super::operations`].
//!
//! Schemas are those of the serde types: what is asked as it is read, what is answered as it is written. Where the two differ
//! for one type, the document has the type twice, the second time with `Answer` after its name.

use schemars::generate::{Contract, SchemaSettings};
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::operations::{Content, Operation, Role, operations};
use super::types::ApiError;

const SCHEMAS: &str = "#/components/schemas/";

/// What a status means here, for those that any operation may answer.
const ERRORS: [(&str, &str); 4] = [
    ("400", "The request isn't understood, or what it asks makes no sense"),
    ("413", "The request's body is too long"),
    ("500", "The coordinator failed"),
    ("503", "The coordinator is stopping; try again"),
];

/// The document.
pub fn document() -> Value {
    let [mut asked, mut answered] = [Contract::Deserialize, Contract::Serialize].map(generator);
    let error = answered.subschema_for::<ApiError>();
    let mut paths = Map::new();
    let mut answers = Vec::new();
    for operation in operations() {
        let at = paths.entry(operation.path).or_insert_with(|| json!({}));
        at[operation.method.word()] = describe(&operation, &mut asked);
        if let Content::Json(schema) = operation.answer {
            answers.push((operation.path, operation.method, schema(&mut answered).to_value()));
        }
    }
    let mut schemas = asked.take_definitions(false);
    let mut differing = Vec::new();
    let written = answered.take_definitions(false);
    // A type differs too if one that it refers to does.
    loop {
        let before = differing.len();
        for (name, schema) in &written {
            let other = schemas.get(name).is_some_and(|s| s != schema || refers(schema, &differing));
            if other && !differing.contains(name) {
                differing.push(name.clone());
            }
        }
        if before == differing.len() {
            break;
        }
    }
    for (path, method, mut schema) in answers {
        rename(&mut schema, &differing);
        paths[path][method.word()]["responses"]["200"]["content"]["application/json"]["schema"] = schema;
    }
    for (name, mut schema) in written {
        rename(&mut schema, &differing);
        let name = if differing.contains(&name) { format!("{name}Answer") } else { name };
        schemas.insert(name, schema);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Evenkeel admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The coordinator's API. Fields may be added; a client ignores those that it doesn't know. \
                Units stand last in names: `_bytes`, `_seconds`, `_ms`, `_us`, `_bytes_per_sec`. \
                The live stream of the console's page (`/console/stream`, server-sent events) is that page's own and not part of it; \
                `/v1/events?after=ID` is asked again for what is new.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The coordinator's admin address"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {"Error": {
                "description": "It failed, and why",
                "content": {"application/json": {"schema": error}},
            }},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The text of the coordinator's token file: an operator's or a viewer's"},
                "certificate": {"type": "mutualTLS", "description": "A client certificate of the cluster for an operator or a viewer"},
            },
        },
    });
    plain_descriptions(&mut document);
    document
}

/// The schema of a type as it is written, complete in itself.
pub fn answer_schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.contract = Contract::Serialize);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    plain_descriptions(&mut schema);
    schema
}

/// The schema of what is written as one type or another, complete in itself.
pub fn either_schema<A: JsonSchema, B: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.contract = Contract::Serialize);
    let mut generator = settings.into_generator();
    let either = [generator.subschema_for::<A>(), generator.subschema_for::<B>()];
    let definitions = generator.take_definitions(true);
    let mut schema =
        json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": either, "$defs": definitions });
    plain_descriptions(&mut schema);
    schema
}

fn generator(contract: Contract) -> SchemaGenerator {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.contract = contract;
        s.definitions_path = "/components/schemas".into();
        s.meta_schema = None;
    });
    settings.into_generator()
}

/// All but the success's schema.
fn describe(operation: &Operation, asked: &mut SchemaGenerator) -> Value {
    let mut parameters = Vec::new();
    if let Some((_, rest)) = operation.path.split_once('{') {
        let name = rest.split_once('}').map_or(rest, |(name, _)| name);
        parameters.push(json!({
            "name": name, "in": "path", "required": true, "schema": {"type": "string"}, "description": meaning(operation.path),
        }));
    }
    if let Some((name, words)) = operation.query {
        let schema = json!({"type": "integer", "format": "uint64", "minimum": 0});
        parameters
            .push(json!({"name": name, "in": "query", "required": false, "schema": schema, "description": words}));
    }
    let mut responses = Map::new();
    let content = match operation.answer {
        Content::Json(_) => json!({"application/json": {}}),
        Content::Text => {
            json!({"text/plain": {"schema": {"type": "string", "description": "Prometheus text, version 0.0.4"}}})
        }
    };
    responses.insert("200".to_owned(), json!({"description": "Done", "content": content}));
    let mut fails = |status: &str, words: &str| {
        let content = json!({"application/json": {"schema": {"$ref": format!("{SCHEMAS}ApiError")}}});
        responses.insert(status.to_owned(), json!({"description": words, "content": content}));
    };
    ERRORS.iter().for_each(|(status, words)| fails(status, words));
    fails("401", "No token or certificate, or one that isn't known");
    if operation.role == Role::Operator {
        fails("403", "A viewer may only read");
    }
    fails("404", "There is nothing of that name");
    if operation.request.is_some() || operation.role == Role::Operator {
        fails("409", "It can't be done as things are");
    }
    // What else there is to say has the same form.
    responses.insert("default".to_owned(), json!({"$ref": "#/components/responses/Error"}));
    let (roles, security) = match operation.role {
        Role::Anyone => ("anyone", json!([])),
        Role::Loopback => (
            "anyone on the coordinator's host; elsewhere viewers and operators",
            json!([{}, {"token": ["viewer"]}, {"certificate": ["viewer"]}]),
        ),
        Role::Viewer => ("viewers and operators", json!([{"token": ["viewer"]}, {"certificate": ["viewer"]}])),
        Role::Operator => ("operators", json!([{"token": ["operator"]}, {"certificate": ["operator"]}])),
    };
    let mut out = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "description": format!("For {roles}."),
        "security": security,
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(request) = operation.request {
        out["requestBody"] = json!({
            "description": "No body is an empty object",
            "content": {"application/json": {"schema": request(asked).to_value()}},
        });
    }
    out
}

/// Of the path's parameter.
fn meaning(path: &str) -> &'static str {
    if path.starts_with("/v1/pgs/") {
        "The placement group, as POOL.INDEX: 1.17"
    } else if path.starts_with("/v1/jobs/") {
        "The job's number"
    } else {
        "Its name"
    }
}

fn refers(schema: &Value, names: &[String]) -> bool {
    match schema {
        Value::Object(fields) => fields.iter().any(|(key, value)| match value.as_str() {
            Some(target) if key == "$ref" => names.iter().any(|n| target.strip_prefix(SCHEMAS) == Some(n)),
            _ => refers(value, names),
        }),
        Value::Array(items) => items.iter().any(|i| refers(i, names)),
        _ => false,
    }
}

fn rename(schema: &mut Value, names: &[String]) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                let target = value.as_str().and_then(|t| t.strip_prefix(SCHEMAS)).filter(|_| key == "$ref");
                match target.filter(|t| names.iter().any(|n| n == t)) {
                    Some(target) => *value = json!(format!("{SCHEMAS}{target}Answer")),
                    None => rename(value, names),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|i| rename(i, names)),
        _ => {}
    }
}

/// Comments in code link to other types; a description has no links: only the words stay.
fn plain_descriptions(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "description" => *text = without_links(text),
                    value => plain_descriptions(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain_descriptions),
        _ => {}
    }
}

fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((words, after)) = link.split_once("`]") else { break };
        out.push_str(before);
        out.push('`');
        out.push_str(words);
        out.push('`');
        // The target that stands in brackets after it.
        rest = after.strip_prefix('(').and_then(|a| a.split_once(')')).map_or(after, |(_, rest)| rest);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::super::operations::Method;
    use super::*;

    /// Every `$ref` of a value.
    fn targets(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| match value.as_str() {
                Some(target) if key == "$ref" => out.push(target.to_owned()),
                _ => targets(value, out),
            }),
            Value::Array(items) => items.iter().for_each(|i| targets(i, out)),
            _ => {}
        }
    }

    #[test]
    fn every_operation_is_in_the_document_and_nothing_else() {
        let document = document();
        let mut found = 0;
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, described) in methods.as_object().unwrap() {
                let of_table = operations().into_iter().find(|o| o.path == path && o.method.word() == method);
                let operation = of_table.unwrap_or_else(|| panic!("{method} {path} has no route"));
                assert_eq!(described["operationId"], operation.id);
                assert!(!operation.summary.is_empty(), "{path}");
                found += 1;
            }
        }
        assert_eq!(found, operations().len());
    }

    #[test]
    fn ids_are_unique_and_only_questions_are_for_viewers() {
        let mut ids: Vec<&str> = operations().iter().map(|o| o.id).collect();
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), all);
        for o in operations() {
            let asks = o.method == Method::Get || ["/v1/plan", "/v1/ok-to-stop"].contains(&o.path);
            let open = o.path == "/v1/join";
            assert_eq!(o.role != Role::Operator, asks || open, "{} {}", o.method.word(), o.path);
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_one() {
        let document = document();
        let mut all = Vec::new();
        targets(&document, &mut all);
        assert!(all.len() > 50);
        for target in all {
            let pointer = target.strip_prefix('#').unwrap_or_else(|| panic!("{target} is elsewhere"));
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            assert!(jsonschema::meta::is_valid(schema), "{name}");
            assert!(schema["description"].is_string(), "{name} says nothing");
            for (field, described) in schema["properties"].as_object().into_iter().flatten() {
                assert!(described["description"].is_string(), "{name}.{field} says nothing: {described}");
            }
        }
    }

    /// All that is in one is in the other, but for schemas (they are held to JSON Schema's own) and what is empty.
    fn assert_within(ours: &Value, theirs: &Value, at: &str) {
        match ours {
            Value::Object(fields) => {
                for (name, field) in fields.iter().filter(|(name, _)| !name.starts_with("schema")) {
                    assert_within(field, &theirs[name], &format!("{at}/{name}"));
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    assert_within(item, &theirs[i], &format!("{at}/{i}"));
                }
            }
            Value::Bool(false) => assert_ne!(theirs, &json!(true), "{at}"),
            _ => assert_eq!(ours, theirs, "{at}"),
        }
    }

    /// Another's reading of OpenAPI 3.1: it wants every field that must be there in its type, and what it doesn't know is
    /// lost on the way back.
    #[test]
    fn a_reader_of_openapi_finds_all_of_it() {
        let document = document();
        let read: oas3::Spec = serde_json::from_value(document.clone()).unwrap();
        read.validate_version().unwrap();
        assert_eq!(read.operations().count(), operations().len());
        let again = serde_json::to_value(&read).unwrap();
        for part in ["openapi", "info", "servers", "paths", "components"] {
            assert_within(&document[part], &again[part], part);
        }
    }

    #[test]
    fn descriptions_have_no_links() {
        assert_eq!(without_links("As in [`A`], [`b`](super::b) and [x]."), "As in `A`, `b` and [x].");
        assert!(!document().to_string().contains("[`"));
    }
}
