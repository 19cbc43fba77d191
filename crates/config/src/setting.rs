//! How a field of a section is declared: with its documentation, its default and its limit, or not at all.

use std::net::SocketAddr;
use std::path::PathBuf;

use postrider_secrets::RedactedUrl;
use secrecy::SecretString;

use crate::values::{ByteSize, LogFormat, Networks, Period, Ratio};

/// What a value looks like as text, so that the environment and the command line can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    Number,
    Bool,
    List,
}

/// A type that a field may have.
pub(crate) trait Setting {
    const FORM: Form = Form::Text;
    /// Whether the value, or a part of it, must not be shown.
    const SECRET: bool = false;

    /// The value without its secrets; `None` when there is none.
    fn show(&self) -> Option<String>;
}

/// What a field's value must be.
pub(crate) trait Limit<T> {
    /// In words, after "must be"; empty without a limit.
    fn text(&self) -> String;

    fn holds(&self, value: &T) -> bool;
}

/// No limit but the type's.
pub(crate) struct Any;

/// From the first to the second, both included; of a list, each item.
pub(crate) struct Between<T>(pub(crate) T, pub(crate) T);

/// At most so many items, each between the limits.
pub(crate) struct Items<T>(pub(crate) usize, pub(crate) Between<T>);

/// At most so many items.
pub(crate) struct Count(pub(crate) usize);

/// A name that services take as it is: letters, digits, `.`, `_` and `-`, at most 64.
pub(crate) struct Name;

impl<T> Limit<T> for Any {
    fn text(&self) -> String {
        String::new()
    }

    fn holds(&self, _: &T) -> bool {
        true
    }
}

impl<T: PartialOrd + Setting> Limit<T> for Between<T> {
    fn text(&self) -> String {
        let shown = |value: &T| value.show().unwrap_or_default();
        format!("{} to {}", shown(&self.0), shown(&self.1))
    }

    fn holds(&self, value: &T) -> bool {
        (&self.0..=&self.1).contains(&value)
    }
}

impl<T: PartialOrd + Setting> Limit<Option<T>> for Between<T> {
    fn text(&self) -> String {
        Limit::<T>::text(self)
    }

    fn holds(&self, value: &Option<T>) -> bool {
        value.as_ref().is_none_or(|value| Limit::<T>::holds(self, value))
    }
}

impl<T: PartialOrd + Setting> Limit<Vec<T>> for Items<T> {
    fn text(&self) -> String {
        format!("at most {} items, each {}", self.0, Limit::<T>::text(&self.1))
    }

    fn holds(&self, value: &Vec<T>) -> bool {
        value.len() <= self.0 && value.iter().all(|item| self.1.holds(item))
    }
}

impl Limit<Networks> for Count {
    fn text(&self) -> String {
        format!("at most {} items", self.0)
    }

    fn holds(&self, value: &Networks) -> bool {
        value.0.len() <= self.0
    }
}

impl Limit<Vec<SocketAddr>> for Count {
    fn text(&self) -> String {
        Limit::<Networks>::text(self)
    }

    fn holds(&self, value: &Vec<SocketAddr>) -> bool {
        value.len() <= self.0
    }
}

impl Limit<String> for Name {
    fn text(&self) -> String {
        "1 to 64 letters, digits, `.`, `_` or `-`".to_owned()
    }

    fn holds(&self, value: &String) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        (1..=64).contains(&value.len()) && value.bytes().all(plain)
    }
}

macro_rules! plain_setting {
    ($($type:ty: $form:ident),+ $(,)?) => {
        $(impl Setting for $type {
            const FORM: Form = Form::$form;

            fn show(&self) -> Option<String> {
                Some(self.to_string())
            }
        })+
    };
}

plain_setting!(bool: Bool, u16: Number, u32: Number, u64: Number, usize: Number, String: Text, SocketAddr: Text, Period: Text, ByteSize: Text, Ratio: Text);

impl Setting for PathBuf {
    fn show(&self) -> Option<String> {
        Some(self.display().to_string())
    }
}

impl Setting for LogFormat {
    fn show(&self) -> Option<String> {
        let name = match self {
            Self::Text => "text",
            Self::Json => "json",
        };
        Some(name.to_owned())
    }
}

impl Setting for Networks {
    const FORM: Form = Form::List;

    fn show(&self) -> Option<String> {
        show_list(self.0.iter().map(ToString::to_string))
    }
}

macro_rules! list_setting {
    ($($item:ty),+) => {
        $(impl Setting for Vec<$item> {
            const FORM: Form = Form::List;

            fn show(&self) -> Option<String> {
                show_list(self.iter().map(ToString::to_string))
            }
        })+
    };
}

list_setting!(Period, SocketAddr);

impl Setting for RedactedUrl {
    const SECRET: bool = true;

    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Setting for SecretString {
    const SECRET: bool = true;

    fn show(&self) -> Option<String> {
        Some("***".to_owned())
    }
}

impl<T: Setting> Setting for Option<T> {
    const FORM: Form = T::FORM;
    const SECRET: bool = T::SECRET;

    fn show(&self) -> Option<String> {
        self.as_ref().and_then(Setting::show)
    }
}

fn show_list(items: impl Iterator<Item = String>) -> Option<String> {
    let shown = items.collect::<Vec<_>>().join(",");
    (!shown.is_empty()).then_some(shown)
}

/// All there is to know about one key and its value.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) section: &'static str,
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) form: Form,
    pub(crate) secret: bool,
    pub(crate) default: Option<String>,
    pub(crate) limit: String,
    pub(crate) value: Option<String>,
    pub(crate) in_limit: bool,
}

impl Field {
    pub(crate) fn new<T: Setting>(
        [section, name, doc]: [&'static str; 3],
        default: &T,
        value: &T,
        limit: &impl Limit<T>,
    ) -> Self {
        Self {
            section,
            name,
            doc,
            form: T::FORM,
            secret: T::SECRET,
            default: default.show(),
            limit: limit.text(),
            value: value.show(),
            in_limit: limit.holds(value),
        }
    }

    /// As in TOML, with the section before a dot.
    pub(crate) fn key(&self) -> String {
        if self.section.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}.{}", self.section, self.name)
        }
    }

    /// The environment variable that sets it.
    pub(crate) fn variable(&self) -> String {
        variable_of(&self.key())
    }
}

/// What environment variables start with.
pub(crate) const VARIABLE_PREFIX: &str = "POSTRIDER_";

pub(crate) fn variable_of(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// Declares a section: the struct with serde's strictest reading, its defaults, and [`Field`]s that list it.
macro_rules! settings {
    (
        $(#[doc = $section_doc:literal])+
        $struct:ident in $section:literal {
            $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr, $limit:expr;)*
        }
        $(with { $($(#[doc = $sub_doc:literal])+ $sub:ident: $sub_type:ty,)* })?
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Debug, Clone, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $struct {
            $($(#[doc = $doc])+ pub $field: $type,)*
            $($($(#[doc = $sub_doc])+ pub $sub: $sub_type,)*)?
        }

        impl Default for $struct {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    $($($sub: Default::default(),)*)?
                }
            }
        }

        impl $struct {
            /// Every field with its value, in the order of declaration.
            pub(crate) fn fields(&self) -> Vec<$crate::setting::Field> {
                let default = Self::default();
                let own = [$($crate::setting::Field::new(
                    [$section, stringify!($field), concat!($($doc),+)],
                    &default.$field,
                    &self.$field,
                    &$limit,
                ),)*];
                own.into_iter()$($(.chain(self.$sub.fields()))*)?.collect()
            }
        }
    };
}

pub(crate) use settings;
