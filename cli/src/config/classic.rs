//! The files of xm, read as they are.
//!
//! They are Python, of which nearly all use assignments of literals only: `name = value`, one a line, where a value is
//! a string in either quotes (adjacent ones are one string), a number, a list or tuple of such, `None`, `True` or
//! `False`. Comments, empty lines, semicolons, backslash continuations and lists over several lines are understood.
//! Anything else is refused with its line and a reason, and never guessed at.

use std::fmt;
use std::path::PathBuf;

use super::Spec;
use crate::units::parse_size;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `'text'`
    Text(String),
    /// `12`, `0x1f`, `-1`
    Number(i64),
    /// `[ .. ]`, `( .. )`
    List(Vec<Value>),
    /// `None`
    None,
    /// `True`, `False`
    Bool(bool),
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The line, from 1.
    pub line: usize,
    /// Why.
    pub why: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.why)
    }
}

/// Lists within lists, at most.
const DEPTH: usize = 8;

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    /// How many brackets are open: within them, line ends are space.
    depth: usize,
}

impl Reader<'_> {
    fn wrong<T>(&self, why: impl Into<String>) -> Result<T, Wrong> {
        Err(Wrong { line: self.line, why: why.into() })
    }

    fn take(&mut self) -> Option<char> {
        let c = self.rest.next();
        self.line += usize::from(c == Some('\n'));
        c
    }

    /// Passes over space, comments and continuations; over line ends too where they mean nothing.
    fn skip(&mut self) -> Result<(), Wrong> {
        while let Some(&c) = self.rest.peek() {
            match c {
                ' ' | '\t' | '\r' | '\x0c' => {}
                '\n' if self.depth > 0 => {}
                '#' => {
                    while self.rest.peek().is_some_and(|&c| c != '\n') {
                        self.take();
                    }
                    continue;
                }
                '\\' => {
                    self.take();
                    if self.rest.peek() == Some(&'\r') {
                        self.take();
                    }
                    if self.rest.peek() != Some(&'\n') {
                        return self.wrong("a backslash stands in the midst of a line");
                    }
                }
                _ => return Ok(()),
            }
            self.take();
        }
        Ok(())
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(&c) = self.rest.peek().filter(|c| c.is_alphanumeric() || **c == '_') {
            word.push(c);
            self.take();
        }
        word
    }

    fn string(&mut self, quote: char) -> Result<String, Wrong> {
        let begun = self.line;
        self.take();
        let mut is_long = false;
        if self.rest.peek() == Some(&quote) {
            self.take();
            if self.rest.peek() != Some(&quote) {
                return Ok(String::new());
            }
            self.take();
            is_long = true;
        }
        let mut text = String::new();
        loop {
            match self.take() {
                None => return Err(Wrong { line: begun, why: format!("the string has no closing {quote}") }),
                Some('\n') if !is_long => {
                    return Err(Wrong { line: begun, why: format!("the string has no closing {quote} on its line") });
                }
                Some(c) if c == quote => {
                    if !is_long {
                        return Ok(text);
                    }
                    let mut quotes = 1;
                    while quotes < 3 && self.rest.peek() == Some(&quote) {
                        self.take();
                        quotes += 1;
                    }
                    if quotes == 3 {
                        return Ok(text);
                    }
                    text.extend(std::iter::repeat_n(quote, quotes));
                }
                Some('\\') => match self.take() {
                    Some(c @ ('\\' | '\'' | '"')) => text.push(c),
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('\n') => {}
                    Some(c) => return self.wrong(format!("the escape \\{c} is not understood here")),
                    None => return self.wrong("the file ends in a string"),
                },
                Some(c) => text.push(c),
            }
        }
    }

    fn value(&mut self) -> Result<Value, Wrong> {
        self.skip()?;
        let value = match self.rest.peek().copied() {
            None | Some('\n' | ';') => return self.wrong("the value is missing"),
            Some(quote @ ('\'' | '"')) => {
                let mut text = self.string(quote)?;
                loop {
                    self.skip()?;
                    match self.rest.peek().copied() {
                        Some(quote @ ('\'' | '"')) => text += &self.string(quote)?,
                        _ => break Value::Text(text),
                    }
                }
            }
            Some(open @ ('[' | '(')) => self.list(open)?,
            Some('{') => return self.wrong("dictionaries are not understood here"),
            Some(c) if c.is_ascii_digit() || c == '-' || c == '+' => self.number()?,
            Some(c) if c.is_alphabetic() || c == '_' => {
                let word = self.word();
                match word.as_str() {
                    "None" => Value::None,
                    "True" => Value::Bool(true),
                    "False" => Value::Bool(false),
                    _ => {
                        return self
                            .wrong(format!("{word:?} is Python: only strings, numbers and lists are read here"));
                    }
                }
            }
            Some(c) => return self.wrong(format!("{c:?} begins no value")),
        };
        self.skip()?;
        match self.rest.peek().copied() {
            Some(c @ ('+' | '-' | '*' | '/' | '%' | '.' | '[' | '(' | '<' | '>' | '=' | '!')) => {
                self.wrong(format!("{c:?} behind a value is Python: nothing is computed here, write the value out"))
            }
            _ => Ok(value),
        }
    }

    fn list(&mut self, open: char) -> Result<Value, Wrong> {
        let begun = self.line;
        let close = if open == '[' { ']' } else { ')' };
        self.take();
        self.depth += 1;
        if self.depth > DEPTH {
            return self.wrong("lists within lists go too deep");
        }
        let mut values = Vec::new();
        let mut has_comma = false;
        loop {
            self.skip()?;
            match self.rest.peek() {
                None => return Err(Wrong { line: begun, why: format!("the list has no closing {close}") }),
                Some(&c) if c == close => break,
                Some(_) if values.is_empty() || has_comma => values.push(self.value()?),
                Some(&c) => return self.wrong(format!("{c:?} stands where a comma or {close} belongs")),
            }
            self.skip()?;
            has_comma = self.rest.peek() == Some(&',');
            if has_comma {
                self.take();
            }
        }
        self.take();
        self.depth -= 1;
        // Brackets around one value only hold it together.
        match (open, has_comma, values.len()) {
            ('(', false, 1) => Ok(values.remove(0)),
            _ => Ok(Value::List(values)),
        }
    }

    fn number(&mut self) -> Result<Value, Wrong> {
        let mut is_negative = false;
        if let Some(&sign @ ('-' | '+')) = self.rest.peek() {
            is_negative = sign == '-';
            self.take();
        }
        let word = self.word().to_ascii_lowercase();
        let digits = word.trim_end_matches('l');
        let number = match (digits.strip_prefix("0x"), digits) {
            (Some(hex), _) => i64::from_str_radix(hex, 16).ok(),
            // Python's old way to write octal, where people mean a decimal number more often than not.
            (None, decimal) if decimal.len() > 1 && decimal.starts_with('0') => None,
            (None, decimal) => decimal.parse::<i64>().ok(),
        };
        match number {
            Some(number) => Ok(Value::Number(if is_negative { -number } else { number })),
            None => self.wrong(format!("{word:?} is no number that is understood here")),
        }
    }
}

/// The assignments of a file, in their order, with their lines.
///
/// # Errors
/// Something is more than an assignment of a literal.
pub fn assignments(text: &str) -> Result<Vec<(usize, String, Value)>, Wrong> {
    let mut reader = Reader { rest: text.chars().peekable(), line: 1, depth: 0 };
    let mut all = Vec::new();
    loop {
        reader.skip()?;
        match reader.rest.peek().copied() {
            None => return Ok(all),
            Some('\n' | ';') => {
                reader.take();
                continue;
            }
            Some(_) => {}
        }
        let line = reader.line;
        let name = reader.word();
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return reader.wrong("here should be `name = value`");
        }
        const STATEMENTS: [&str; 9] = ["import", "from", "def", "if", "for", "while", "class", "print", "try"];
        if STATEMENTS.contains(&name.as_str()) {
            return reader.wrong(format!("`{name}` is Python: only `name = value` is read here, write the values out"));
        }
        reader.skip()?;
        if reader.rest.peek() != Some(&'=') {
            return reader.wrong(format!("behind {name:?} should be `= value`"));
        }
        reader.take();
        let value = reader.value()?;
        match reader.rest.peek().copied() {
            None | Some('\n' | ';') => {}
            Some(c) => return reader.wrong(format!("{c:?} stands behind the value of {name}")),
        }
        all.push((line, name, value));
    }
}

/// Reads a description. Of a name that is set twice the last counts, as in Python.
///
/// # Errors
/// What is wrong or cannot be had, with its line.
pub fn parse(text: &str) -> Result<Spec, Wrong> {
    let mut spec = Spec::default();
    let (mut root, mut extra) = (None, None);
    for (line, name, value) in assignments(text)? {
        let wrong = |why: String| Wrong { line, why };
        let text = |value: Value| match value {
            Value::Text(text) => Ok(Some(text)),
            Value::None => Ok(None),
            _ => Err(wrong(format!("{name} is a string"))),
        };
        let number = |value: Value| match value {
            Value::Number(number) => u32::try_from(number).map_err(|_| wrong(format!("{number} is no {name}"))),
            // xm took numbers in strings too.
            Value::Text(text) => text.trim().parse().map_err(|_| wrong(format!("{text:?} is no {name}"))),
            _ => Err(wrong(format!("{name} is a number"))),
        };
        match name.as_str() {
            "name" => spec.name = text(value)?,
            "kernel" => spec.kernel = text(value)?.map(PathBuf::from),
            "ramdisk" => spec.ramdisk = text(value)?.filter(|path| !path.is_empty()).map(PathBuf::from),
            "memory" => spec.memory = Some(parse_size(&number(value)?.to_string()).map_err(wrong)?),
            "maxmem" => spec.memory_limit = Some(parse_size(&number(value)?.to_string()).map_err(wrong)?),
            // -1: the hypervisor chooses.
            "cpu" if matches!(value, Value::Number(-1) | Value::None) => spec.cpu = None,
            "cpu" => spec.cpu = Some(number(value)?),
            "root" => root = text(value)?,
            "extra" => extra = text(value)?,
            "restart" => {
                spec.restart = text(value)?.map(|word| super::restart(&word)).transpose().map_err(wrong)?;
            }
            "cpu_weight" => spec.sched = Some(super::weight(number(value)?).map_err(wrong)?),
            "builder" if value == Value::Text("linux".to_owned()) => {}
            "disk" | "vif" | "nics" | "dhcp" | "ip" | "netmask" | "gateway" | "hostname" | "pci" | "blkif"
            | "netif" => {
                let is_nothing = match &value {
                    Value::None | Value::Number(0) | Value::Bool(false) => true,
                    Value::List(list) => list.is_empty(),
                    Value::Text(text) => text.is_empty() || text == "off",
                    _ => false,
                };
                if !is_nothing {
                    return Err(wrong(match name.as_str() {
                        "disk" => {
                            "disk: there are no block devices yet; pass a ramdisk, and take this line out".to_owned()
                        }
                        "vif" | "nics" => format!("{name}: there are no network devices yet; take this line out"),
                        _ => format!("{name}: there is no such device or setting yet; take this line out"),
                    }));
                }
            }
            _ => {
                let known = "name, kernel, ramdisk, memory, maxmem, cpu, cpu_weight, root, extra, restart";
                return Err(wrong(format!("{name:?} is not known here; these are: {known}")));
            }
        }
    }
    // As xm made it: the root, then what is extra.
    let words: Vec<String> = root.map(|root| format!("root={root}")).into_iter().chain(extra).collect();
    spec.cmdline = Some(words.join(" ")).filter(|line| !line.is_empty());
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proxenos_rpc::{Kib, Restart};

    /// Of the shape of the examples that came with Xen 2.0.
    const EXAMPLE: &str = r#"#  -*- mode: python; -*-
#====
# Kernel image file.
kernel = "/boot/vmlinuz-2.6.9-xenU"

# Optional ramdisk.
#ramdisk = "/boot/initrd.gz"
ramdisk = '/boot/initrd' '.gz'
memory = 64
name = "ExampleDomain"
cpu = -1   # leave to Xen to pick
nics=0
disk = [ ]
root = "/dev/hda1 ro"
extra = "4"; restart = 'onreboot'
"#;

    #[test]
    fn a_classic_is_read_as_it_is() {
        let spec = parse(EXAMPLE).expect("fine");
        let expected = Spec {
            name: Some("ExampleDomain".into()),
            kernel: Some("/boot/vmlinuz-2.6.9-xenU".into()),
            ramdisk: Some("/boot/initrd.gz".into()),
            memory: Some(Kib(64 << 10)),
            cmdline: Some("root=/dev/hda1 ro 4".into()),
            restart: Some(Restart::OnReboot),
            ..Spec::default()
        };
        assert_eq!(spec, expected);
    }

    #[test]
    fn literals_are_what_python_makes_of_them() {
        let text = "a = 'x\\'y' \"z\"\nb = [1, 0x1f, -3,\n # within\n 'q', (4), (5,), ()]\nc = \\\n None\nd=\"\"\"m\n\"n\"\"\"";
        let values: Vec<Value> = assignments(text).expect("fine").into_iter().map(|(_, _, value)| value).collect();
        let n = Value::Number;
        let list =
            vec![n(1), n(31), n(-3), Value::Text("q".into()), n(4), Value::List(vec![n(5)]), Value::List(vec![])];
        let expected = [Value::Text("x'yz".into()), Value::List(list), Value::None, Value::Text("m\n\"n".into())];
        assert_eq!(values, expected);
    }

    #[test]
    fn what_is_more_than_that_is_refused_with_its_line() {
        for (text, line, words) in [
            ("import os", 1, "`import` is Python"),
            ("\nname = 'a' + 'b'", 2, "computed"),
            ("name = 'a' % vmid", 1, "computed"),
            ("name = foo", 1, "\"foo\" is Python"),
            ("memory = int(64)", 1, "Python"),
            ("name = 'a", 1, "closing '"),
            ("name = 'a\nmemory = 3'", 1, "on its line"),
            ("a = [1\n\n", 1, "closing ]"),
            ("a = [1 2]", 1, "comma"),
            ("a = {}", 1, "dictionaries"),
            ("a =", 1, "missing"),
            ("= 3", 1, "name = value"),
            ("name 3", 1, "= value"),
            ("\n\ndisk = [ 'phy:hda1,hda1,w' ]", 3, "block devices"),
            ("vif = [ 'mac=aa:00' ]", 1, "network devices"),
            ("nics = 1", 1, "network devices"),
            ("memory = 010", 1, "no number"),
            ("memory = 0", 1, "no size"),
            ("memory = -5", 1, "no memory"),
            ("name = 3", 1, "is a string"),
            ("restart = 'maybe'", 1, "always"),
            ("vcpus = 2", 1, "not known"),
            ("name = 'a' memory = 3", 1, "behind the value"),
            ("a = [[[[[[[[[[[[]]]]]]]]]]]]", 1, "too deep"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.line == line && error.why.contains(words), "{text:?}: {error}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            "[^\\x00-\\x08\\x0b-\\x1f]{0,20}".prop_map(Value::Text),
            any::<i32>().prop_map(|n| Value::Number(n.into())),
            Just(Value::None),
            any::<bool>().prop_map(Value::Bool),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| prop::collection::vec(inner, 0..5).prop_map(Value::List))
    }

    fn write(value: &Value, quote: char) -> String {
        match value {
            Value::Text(text) => {
                let escaped = text.replace('\\', "\\\\").replace(quote, &format!("\\{quote}")).replace('\n', "\\n");
                format!("{quote}{escaped}{quote}")
            }
            Value::Number(number) => number.to_string(),
            Value::List(list) => {
                format!("[{}]", list.iter().map(|v| write(v, quote)).collect::<Vec<_>>().join(" ,\n # c\n"))
            }
            Value::None => "None".to_owned(),
            Value::Bool(true) => "True".to_owned(),
            Value::Bool(false) => "False".to_owned(),
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_with_a_line_of_it(text in "(.|\n){0,300}") {
            if let Err(error) = parse(&text) {
                prop_assert!((1..=text.lines().count() + 1).contains(&error.line), "{}", error);
            }
        }

        #[test]
        fn nearly_files_are_read_or_refused(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("name"), Just("="), Just("'"), Just("\""), Just("["), Just("]"), Just("("), Just(")"),
                    Just(","),
                    Just("\n"), Just("\\"), Just("#"), Just(" "), Just("1"), Just("memory"), Just(";"), Just("\"\"\""),
                ],
                0..40,
            ),
        ) {
            let _ = parse(&parts.concat());
        }

        #[test]
        fn what_is_written_is_read_back(value in value(), quote in prop_oneof![Just('\''), Just('"')]) {
            let text = format!("x = {}", write(&value, quote));
            prop_assert_eq!(assignments(&text), Ok(vec![(1, "x".to_owned(), value)]));
        }
    }
}
