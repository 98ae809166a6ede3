//! HyperYAML as `cosyvoice2.yaml` uses it: `!new:`, `!name:`, `!apply:` name Python objects (never made: a class is only
//! a label beside its arguments), `!ref <key[sub]>` with arithmetic refers to other values.
//!
//! References are followed when a value is asked for, not expanded in advance, so that no file can grow in memory.
//! Grammar after HyperPyYAML's `core.py`; YAML 1.2 core scalars.

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use super::error::Fault;

/// Deepest nesting of collections, and longest chain of references.
const MAX_DEPTH: usize = 48;
/// Longest file that is read; the official one has 7 kB.
const MAX_LEN: usize = 4 << 20;

/// A resolved scalar.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Scalar(Scalar),
    /// The expression behind `!ref`.
    Ref(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

#[derive(Clone, Debug, PartialEq)]
struct Node {
    /// `cosyvoice.llm.llm.Qwen2LM` of `!new:cosyvoice.llm.llm.Qwen2LM`.
    class: Option<String>,
    value: Value,
}

/// A parsed file.
#[derive(Clone, Debug)]
pub struct Document {
    root: Node,
}

impl Document {
    /// Parses the text of a file.
    ///
    /// # Errors
    /// When it is not YAML, nests too deeply, or uses anchors.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > MAX_LEN {
            return Err(Fault::format("too long for a configuration"));
        }
        let mut parser = Parser::new_from_str(text);
        let mut builder = Builder::default();
        for event in &mut parser {
            let (event, span) = event.map_err(|e| Fault::format(format!("not YAML: {e}")))?;
            let line = span.start.line();
            let located = |what| Fault::format(format!("line {line}: {what}"));
            builder.event(event).map_err(located)?;
        }
        let root = builder.root.ok_or_else(|| Fault::format("empty file"))?;
        Ok(Self { root })
    }

    /// The scalar at a dotted path (`flow.encoder.output_size`, `llm.mix_ratio.0`), references followed and arithmetic
    /// done; `None` when nothing is there.
    ///
    /// # Errors
    /// When a reference on the way is broken, or the value is a collection.
    pub fn get(&self, path: &str) -> Result<Option<Scalar>, String> {
        self.scalar(path, 0)
    }

    /// Number of elements of the list at a path; `None` when there is no list.
    ///
    /// # Errors
    /// When a reference on the way is broken.
    pub fn len(&self, path: &str) -> Result<Option<usize>, String> {
        Ok(self.find(path, 0)?.and_then(|node| match &node.value {
            Value::List(items) => Some(items.len()),
            _ => None,
        }))
    }

    /// The Python class or function of the object at a path.
    ///
    /// # Errors
    /// When a reference on the way is broken.
    pub fn class(&self, path: &str) -> Result<Option<&str>, String> {
        Ok(self.find(path, 0)?.and_then(|node| node.class.as_deref()))
    }

    fn scalar(&self, path: &str, depth: usize) -> Result<Option<Scalar>, String> {
        match self.find(path, depth)?.map(|node| &node.value) {
            None => Ok(None),
            Some(Value::Scalar(scalar)) => Ok(Some(scalar.clone())),
            Some(Value::Ref(expression)) => self.evaluate(expression, depth + 1).map(Some),
            Some(_) => Err(format!("{path} is a collection, not a value")),
        }
    }

    /// The node at a path, plain references followed.
    fn find(&self, path: &str, depth: usize) -> Result<Option<&Node>, String> {
        let mut node = &self.root;
        for key in path.split('.') {
            let next = match &node.value {
                Value::Map(items) => items.iter().find(|(k, _)| k == key).map(|(_, v)| v),
                Value::List(items) => key.parse().ok().and_then(|i: usize| items.get(i)),
                _ => None,
            };
            let Some(next) = next else { return Ok(None) };
            node = self.follow(next, depth)?;
        }
        Ok(Some(node))
    }

    fn follow<'a>(&'a self, node: &'a Node, depth: usize) -> Result<&'a Node, String> {
        let Value::Ref(expression) = &node.value else {
            return Ok(node);
        };
        let Some(target) = plain_reference(expression) else {
            return Ok(node);
        };
        if depth > MAX_DEPTH {
            return Err(format!("!ref {expression}: references go in circles"));
        }
        self.find(&target, depth + 1)?
            .ok_or_else(|| format!("!ref {expression}: nothing there"))
    }

    fn evaluate(&self, expression: &str, depth: usize) -> Result<Scalar, String> {
        if depth > MAX_DEPTH {
            return Err(format!("!ref {expression}: references go in circles"));
        }
        let mut arithmetic = Arithmetic {
            document: self,
            rest: expression,
            depth,
        };
        let value = arithmetic
            .sum()
            .map_err(|e| format!("!ref {expression}: {e}"))?;
        if !arithmetic.rest.trim_start().is_empty() {
            return Err(format!(
                "!ref {expression}: cannot read {:?}",
                arithmetic.rest
            ));
        }
        Ok(value)
    }
}

/// `a.b` for `<a[b]>` or `<a.b>` alone.
fn plain_reference(expression: &str) -> Option<String> {
    let inner = expression.trim().strip_prefix('<')?.strip_suffix('>')?;
    (!inner.contains(['<', '>'])).then(|| inner.replace('[', ".").replace(']', ""))
}

/// `+ - * / //`, brackets, numbers and references, by recursive descent.
struct Arithmetic<'a> {
    document: &'a Document,
    rest: &'a str,
    depth: usize,
}

impl Arithmetic<'_> {
    fn eat(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start();
        let eaten = rest.strip_prefix(token);
        self.rest = eaten.unwrap_or(rest);
        eaten.is_some()
    }

    fn sum(&mut self) -> Result<Scalar, String> {
        let mut left = self.product()?;
        loop {
            let op = if self.eat("+") {
                '+'
            } else if self.eat("-") {
                '-'
            } else {
                return Ok(left);
            };
            left = apply(op, &left, &self.product()?)?;
        }
    }

    fn product(&mut self) -> Result<Scalar, String> {
        let mut left = self.atom()?;
        loop {
            let op = if self.eat("*") {
                '*'
            } else if self.eat("//") {
                '%'
            } else if self.eat("/") {
                '/'
            } else {
                return Ok(left);
            };
            left = apply(op, &left, &self.atom()?)?;
        }
    }

    fn atom(&mut self) -> Result<Scalar, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("too deeply nested".into());
        }
        let value = if self.eat("(") {
            let value = self.sum()?;
            if !self.eat(")") {
                return Err("missing )".into());
            }
            value
        } else if self.eat("-") {
            apply('-', &Scalar::Int(0), &self.atom()?)?
        } else if self.eat("<") {
            let end = self.rest.find('>').ok_or("missing >")?;
            let path = self.rest[..end].replace('[', ".").replace(']', "");
            self.rest = &self.rest[end + 1..];
            let value = self.document.scalar(&path, self.depth)?;
            value.ok_or_else(|| format!("<{path}>: nothing there"))?
        } else {
            let end = self
                .rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '.');
            let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
            self.rest = rest;
            match plain_scalar(word) {
                number @ (Scalar::Int(_) | Scalar::Float(_)) => number,
                _ => return Err(format!("cannot read {word:?}")),
            }
        };
        self.depth -= 1;
        Ok(value)
    }
}

fn apply(op: char, a: &Scalar, b: &Scalar) -> Result<Scalar, String> {
    if let (Scalar::Int(a), Scalar::Int(b)) = (a, b)
        && op != '/'
    {
        let value = match op {
            '+' => a.checked_add(*b),
            '-' => a.checked_sub(*b),
            '*' => a.checked_mul(*b),
            _ => a.checked_div_euclid(*b),
        };
        return value
            .map(Scalar::Int)
            .ok_or_else(|| format!("{a} {op} {b}: out of range"));
    }
    let number = |s: &Scalar| match s {
        Scalar::Int(i) => Ok(*i as f64),
        Scalar::Float(f) => Ok(*f),
        other => Err(format!("{other:?} is not a number")),
    };
    let (a, b) = (number(a)?, number(b)?);
    Ok(Scalar::Float(match op {
        '+' => a + b,
        '-' => a - b,
        '*' => a * b,
        '/' => a / b,
        _ => (a / b).floor(),
    }))
}

/// Type of an unquoted scalar.
fn plain_scalar(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "true" | "True" | "TRUE" => return Scalar::Bool(true),
        "false" | "False" | "FALSE" => return Scalar::Bool(false),
        _ => {}
    }
    if let Ok(int) = text.parse() {
        return Scalar::Int(int);
    }
    // Rust reads words such as `nan` and `infinity` as numbers, YAML does not.
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.contains(|c: char| c.is_ascii_digit());
    match text.parse() {
        Ok(float) if numeric => Scalar::Float(float),
        _ => Scalar::Str(text.to_string()),
    }
}

/// Assembles the tree from the parser's events, without recursion.
#[derive(Default)]
struct Builder {
    root: Option<Node>,
    /// Open collections; a map holds its pending key.
    open: Vec<(Node, Option<String>)>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, _, tag) => {
                let value = match (kind(tag.as_deref()), style) {
                    (Kind::Ref, _) => Value::Ref(text.into_owned()),
                    (_, ScalarStyle::Plain) => Value::Scalar(plain_scalar(&text)),
                    _ => Value::Scalar(Scalar::Str(text.into_owned())),
                };
                self.close(node(tag.as_deref(), value)?)
            }
            Event::SequenceStart(_, tag) => {
                self.start(node(tag.as_deref(), Value::List(Vec::new()))?)
            }
            Event::MappingStart(_, tag) => {
                self.start(node(tag.as_deref(), Value::Map(Vec::new()))?)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let (node, _) = self.open.pop().ok_or("collection ends twice")?;
                self.close(node)
            }
            Event::Alias(_) => Err("anchors are not supported".into()),
            _ => Ok(()),
        }
    }

    fn start(&mut self, node: Node) -> Result<(), String> {
        if self.open.len() >= MAX_DEPTH {
            return Err("too deeply nested".into());
        }
        self.open.push((node, None));
        Ok(())
    }

    fn close(&mut self, node: Node) -> Result<(), String> {
        let Some((parent, key)) = self.open.last_mut() else {
            if self.root.replace(node).is_some() {
                return Err("more than one document".into());
            }
            return Ok(());
        };
        match &mut parent.value {
            Value::List(items) => items.push(node),
            Value::Map(items) => match key.take() {
                Some(name) if items.iter().any(|(k, _)| *k == name) => {
                    return Err(format!("key {name} is there twice"));
                }
                Some(name) => items.push((name, node)),
                None => match node.value {
                    Value::Scalar(Scalar::Str(name)) => *key = Some(name),
                    Value::Scalar(other) => *key = Some(format!("{other:?}")),
                    _ => return Err("a key must be a word".into()),
                },
            },
            _ => return Err("a value holds a value".into()),
        }
        Ok(())
    }
}

enum Kind {
    Plain,
    Ref,
    Class(String),
    Other(String),
}

fn kind(tag: Option<&Tag>) -> Kind {
    let Some(tag) = tag.filter(|tag| tag.handle == "!") else {
        return Kind::Plain;
    };
    match tag.suffix.split_once(':') {
        None if tag.suffix == "ref" || tag.suffix == "copy" => Kind::Ref,
        None if tag.suffix == "tuple" => Kind::Plain,
        Some(("new" | "name" | "apply", class)) => Kind::Class(class.to_string()),
        _ => Kind::Other(tag.suffix.clone()),
    }
}

fn node(tag: Option<&Tag>, value: Value) -> Result<Node, String> {
    let class = match kind(tag) {
        Kind::Class(class) => Some(class),
        Kind::Other(tag) => return Err(format!("tag !{tag} is not supported")),
        Kind::Plain | Kind::Ref => None,
    };
    Ok(Node { class, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(text: &str, path: &str) -> Result<Option<Scalar>, String> {
        Document::parse(text).map_err(|e| e.to_string())?.get(path)
    }

    #[test]
    fn scalars_have_the_types_of_yaml_1_2() {
        let text = "a: 1e-06\nb: null\nc: True\nd: '5'\ne: -3\nf: nan\ng: .5\nh:\ni: [1, [2.5]]";
        for (path, expected) in [
            ("a", Scalar::Float(1e-6)),
            ("b", Scalar::Null),
            ("c", Scalar::Bool(true)),
            ("d", Scalar::Str("5".into())),
            ("e", Scalar::Int(-3)),
            ("f", Scalar::Str("nan".into())),
            ("g", Scalar::Float(0.5)),
            ("h", Scalar::Null),
            ("i.1.0", Scalar::Float(2.5)),
        ] {
            assert_eq!(get(text, path), Ok(Some(expected)), "{path}");
        }
        assert_eq!(get(text, "i.7"), Ok(None));
        assert!(get(text, "i").is_err());
    }

    #[test]
    fn references_are_followed_and_computed() {
        let text = "
chunk: 25
ratio: 2
model: !new:some.Model
    size: !ref <chunk> * <ratio>
    sum: !ref 2 * (<chunk> - 5) + <model[sub][x]> // 2
    half: !ref <chunk> / 2
    sub: {x: 7, y: -1}
other: !name:f
    inner: !ref <model>
seed: !apply:random.seed [1986]
";
        for (path, expected) in [
            ("model.size", Scalar::Int(50)),
            ("model.sum", Scalar::Int(43)),
            ("model.half", Scalar::Float(12.5)),
            ("other.inner.sub.x", Scalar::Int(7)),
            ("seed.0", Scalar::Int(1986)),
        ] {
            assert_eq!(get(text, path), Ok(Some(expected)), "{path}");
        }
        let document = Document::parse(text).unwrap();
        assert_eq!(document.class("other.inner"), Ok(Some("some.Model")));
        assert_eq!(document.class("seed"), Ok(Some("random.seed")));
        assert_eq!(document.len("seed"), Ok(Some(1)));
    }

    #[test]
    fn broken_files_are_errors() {
        for text in [
            "a: !ref <b>\nb: !ref <a>",
            "a: !ref <b> + 1\nb: !ref <a> + 1",
            "a: !ref <nowhere>",
            "a: !ref <a[b]> + 1",
            "a: !ref 1 +",
            "a: !ref 9223372036854775807 + 1",
            "a: !ref 1 // 0",
            "a: !ref (((1)",
            "a: !include:x.yaml\n",
            "a: &x 1\nb: *x",
            "a: 1\na: 2",
            "a: [1",
            "",
        ] {
            assert!(get(text, "a").is_err(), "{text}");
        }
        let deep = format!("a: {}", "[".repeat(500));
        assert!(Document::parse(&deep).is_err());
        let brackets = format!("a: !ref {}1", "(".repeat(5000));
        assert!(get(&brackets, "a").is_err());
    }
}
