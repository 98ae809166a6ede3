//! Chinese rules.

use std::sync::LazyLock;

use regex::Captures;

use super::{Around, Rule, group, units};
use crate::text::numbers::{roman, zh_cardinal, zh_decimal, zh_digits};

/// Measure words before which two is 两.
const MEASURE_WORDS: &str = "台|只|条|本|张|位|名|件|辆|家|间|座|栋|支|枝|把|双|对|杯|瓶|碗|盘|盒|包|袋|箱|块|片|颗|粒|根|棵|朵|头|匹|架|艘|部|套|句|段|篇|首|幅|扇|道|项|份|种|类|次|遍|天|周|年级|小时|分钟|秒钟|个|人份|口|群|排|场|门|节课|顿|步|张|倍|斤|公里|千米|米|吨";

pub(super) static BEFORE: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let number = r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)";
    vec![
        Rule::new(r"\d{1,3}(?:,\d{3})+", |c, a| {
            let alone = !a
                .before
                .ends_with(|x: char| x.is_ascii_alphanumeric() || x == '.' || x == ',');
            let ends = !a
                .after
                .starts_with(|x: char| x.is_ascii_digit() || x == ',');
            (alone && ends).then(|| group(c, 0).replace(',', ""))
        }),
        Rule::new(
            r"(US\$|HK\$|NT\$|[$＄€£¥￥])(\d+(?:\.\d+)?)(万|千万|百万|亿|万亿)?(?:/(月|年|天|日|周|小时|分钟|人|次|个|件|斤|公斤|千克|米|平方米|平米|吨|升|台|位|晚|张))?",
            price,
        ),
        Rule::new(
            r"(\d+(?:\.\d+)?)[wW](?:(\+)|(粉丝|用户|人|元|块|播放|阅读|点赞|次|字))",
            |c, a| {
                let plus = if group(c, 2).is_empty() { "" } else { "加" };
                a.before
                    .chars()
                    .next_back()
                    .is_none_or(|x| !x.is_ascii_alphanumeric() && x != '.')
                    .then(|| format!("{}万{plus}{}", zh_decimal(group(c, 1)), group(c, 3)))
            },
        ),
        Rule::new(r"(480|720|1080|1440|2160)[pP]", |c, a| {
            a.is_free()
                .then(|| format!("{}P", zh_digits(group(c, 1), true)))
        }),
        Rule::new(
            r"(315|618|911|996|1024)(晚会|大促|购物节|活动|事件|恐怖袭击|工作制|程序员节|制)",
            |c, a| {
                let digits = zh_digits(group(c, 1), false);
                (!a.before.ends_with(|x: char| x.is_ascii_alphanumeric()))
                    .then(|| format!("{digits}{}", group(c, 2)))
            },
        ),
        Rule::new(r"(3·15|9·11|5·12|7·7)", |c, a| {
            a.is_free().then(|| zh_digits(group(c, 1), false))
        }),
        Rule::new(r"0?0:([0-5]\d)", |c, a| {
            let minute = match group(c, 1) {
                "00" => "零点".into(),
                m if m.starts_with('0') => format!("零点零{}分", zh_cardinal(m)),
                m => format!("零点{}分", zh_cardinal(m)),
            };
            let ends = !a
                .after
                .starts_with(|x: char| x.is_ascii_digit() || matches!(x, ':' | '-' | '~'));
            (a.is_free()
                && ends
                && a.before
                    .ends_with(['晨', '上', '午', '夜', '里', '日', '号', '天', '在', '于']))
            .then_some(minute)
        }),
        Rule::new(r"(\d{3,4})(室|号房)", |c, a| {
            (!a.before
                .ends_with(|x: char| x.is_ascii_alphanumeric() || matches!(x, '.' | ',' | '-')))
            .then(|| format!("{}{}", zh_digits(group(c, 1), true), group(c, 2)))
        }),
        Rule::new(
            r"\+(\d{1,3})[ -]?(1[3-9]\d)[ -]?(\d{4})[ -]?(\d{4})",
            |c, a| {
                let digits = [group(c, 2), group(c, 3), group(c, 4)].concat();
                (!a.after.starts_with(|x: char| x.is_ascii_digit())).then(|| {
                    format!(
                        "加{}，{}",
                        zh_digits(group(c, 1), true),
                        zh_digits(&digits, true)
                    )
                })
            },
        ),
        Rule::new(r"1[3-9]\d[ -]\d{4}[ -]\d{4}", |c, a| {
            a.is_free().then(|| zh_digits(group(c, 0), true))
        }),
        Rule::new(r"[48]00-?\d{3}-?\d{4}|[48]00-\d{4}-\d{3}", hotline),
        Rule::new(r"0\d{2,3}-\d{7,8}", |c, a| {
            a.is_free().then(|| zh_digits(group(c, 0), true))
        }),
        Rule::new(r"\d{1,3}(?:\.\d{1,3}){3}|[vV]?\d+(?:\.\d+){2,3}", dotted),
        Rule::new(r"[vV](\d+(?:\.\d+)?)", |c, a| {
            (!a.before.ends_with(|x: char| x.is_ascii_alphabetic()))
                .then(|| format!("V{}", zh_decimal(group(c, 1))))
        }),
        Rule::new(r"7[*×xX]24", |_, a| {
            a.is_free().then(|| "七乘二十四".into())
        }),
        Rule::new(r"24/7", |_, a| a.is_free().then(|| "全天候".into())),
        Rule::new(
            r"(\d+(?:\.\d+)?)[%％][-~～－—–](\d+(?:\.\d+)?)[%％]",
            |c, _| {
                Some(format!(
                    "百分之{}到百分之{}",
                    zh_decimal(group(c, 1)),
                    zh_decimal(group(c, 2))
                ))
            },
        ),
        Rule::new(
            r"(\d+(?:\.\d+)?)[-~～－—–](\d+(?:\.\d+)?)[%％]",
            |c, a| {
                (!a.before.ends_with(|x: char| x.is_ascii_digit() || x == '.')).then(|| {
                    format!(
                        "百分之{}到{}",
                        zh_decimal(group(c, 1)),
                        zh_decimal(group(c, 2))
                    )
                })
            },
        ),
        Rule::new(r"([-−])(\d+(?:\.\d+)?) ?(?:℃|°C)", |c, a| {
            (!a.before.ends_with(|x: char| x.is_ascii_digit() || x == '℃'))
                .then(|| format!("零下{}摄氏度", zh_decimal(group(c, 2))))
        }),
        Rule::new(
            &format!(r"([-−])?{number} ?({})", units::alternatives()),
            measure,
        ),
        Rule::new(r"(\d{4})[-~～－—–](\d{4})年", |c, a| {
            a.before
                .ends_with(|x: char| !x.is_ascii_digit() && x != '-')
                .then_some(())
                .or(a.before.is_empty().then_some(()))?;
            Some(format!(
                "{}到{}年",
                zh_digits(group(c, 1), false),
                zh_digits(group(c, 2), false)
            ))
        }),
        Rule::new(r"(\d{1,2}:\d{2})[-~～－—–](\d{1,2}:\d{2})", |c, _| {
            Some(format!("{}到{}", group(c, 1), group(c, 2)))
        }),
        Rule::new(r"第(\d+)[-~～－—–](\d+)", |c, _| {
            Some(format!(
                "第{}到{}",
                zh_cardinal(group(c, 1)),
                zh_cardinal(group(c, 2))
            ))
        }),
        Rule::new(r"第(\d+)", |c, a| {
            let whole = !a.after.starts_with(['.', '-', ',', '~']);
            whole.then(|| format!("第{}", zh_cardinal(group(c, 1)).replace('两', "二")))
        }),
        Rule::new(r"(\d+(?:\.\d+)?)‰", |c, _| {
            Some(format!("千分之{}", zh_decimal(group(c, 1))))
        }),
        Rule::new(r"(\d+)#", |c, _| {
            Some(format!("{}号", zh_cardinal(group(c, 1))))
        }),
        Rule::new(
            r"元/(㎡|m²|km|kg|L|GB|人|天|月|年|小时|次)",
            |c, _| {
                Some(format!(
                    "元每{}",
                    units::find(group(c, 1)).map_or(group(c, 1), |u| u.chinese)
                ))
            },
        ),
        Rule::new(r"第([IVX]+)", |c, _| {
            Some(format!(
                "第{}",
                zh_cardinal(&roman(group(c, 1))?.to_string())
            ))
        }),
        Rule::new(r"(?i:no)[.．] ?(\d+)", |c, a| {
            (!a.before.ends_with(|x: char| x.is_ascii_alphabetic()))
                .then(|| format!("第{}", zh_cardinal(group(c, 1))))
        }),
        Rule::new(r"([A-Z]{1,3})-?(\d{3,5})", |c, a| {
            let code = !a
                .before
                .ends_with(|x: char| x.is_ascii_alphanumeric() || x == '$' || x == '-')
                && !a
                    .after
                    .starts_with(|x: char| x.is_ascii_alphanumeric() || x == '.' || x == ',');
            let currency = ["USD", "HKD", "CNY", "RMB", "EUR", "JPY", "GBP"].contains(&group(c, 1));
            (code && !currency).then(|| format!("{}{}", group(c, 1), zh_digits(group(c, 2), true)))
        }),
        Rule::new(
            r"(房间|教室|房|室|单元|门牌号?|尾号|编号|学号|工号|邮编|验证码|密码|邮政编码|身份证号?|卡号|账号|QQ号?|微信号|车次|航班)(是|为|：|:)?(\d{3,})",
            |c, a| {
                (!a.after.starts_with(|x: char| {
                    x == '.' || x == ',' || x == '个' || x == '间' || x == '元'
                }))
                .then(|| {
                    format!(
                        "{}{}{}",
                        group(c, 1),
                        group(c, 2),
                        zh_digits(group(c, 3), true)
                    )
                })
            },
        ),
        Rule::new(&format!(r"2({MEASURE_WORDS})"), |c, a| {
            let counted = !a.before.ends_with(|x: char| {
                x.is_ascii_alphanumeric()
                    || matches!(x, '.' | ',' | '第' | '-' | '/' | ':' | '~' | '～' | '%')
            });
            counted.then(|| format!("两{}", group(c, 1)))
        }),
        Rule::new(r"C\+\+", |_, _| Some("C加加".into())),
        Rule::new(r"C#", |_, a| {
            (!a.before.ends_with(|x: char| x.is_ascii_alphanumeric())).then(|| "C Sharp".into())
        }),
        Rule::new(r"([A-Z]|[A-Za-z]{2,})-(\d{1,3})", |c, a| {
            (!a.before
                .ends_with(|x: char| x.is_ascii_alphanumeric() || x == '-')
                && !a
                    .after
                    .starts_with(|x: char| x.is_ascii_alphanumeric() || x == '-' || x == '.'))
            .then(|| format!("{}{}", group(c, 1), zh_cardinal(group(c, 2))))
        }),
        Rule::new(r"(\d+)\^(\d+)", |c, _| {
            Some(format!(
                "{}的{}次方",
                zh_cardinal(group(c, 1)),
                zh_cardinal(group(c, 2))
            ))
        }),
        Rule::new(r"(\p{Han})/(\p{Han})", |c, a| {
            (!a.before.ends_with(|x: char| x.is_ascii_digit()))
                .then(|| format!("{}或{}", group(c, 1), group(c, 2)))
        }),
        Rule::new(r"[①-⑳]|[Ⅰ-Ⅻ]|[½¼¾⅓⅔]", single),
    ]
});

pub(super) static AFTER: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    vec![
        Rule::new(r"(\d+(?:\.\d+)?)[%％]", |c, _| {
            Some(format!("百分之{}", zh_decimal(group(c, 1))))
        }),
        Rule::new(r"\d+\.\d+", |c, _| Some(zh_decimal(group(c, 0)))),
        Rule::new(r"\d+", |c, _| {
            let digits = group(c, 0);
            let code = digits.len() > 8 || digits.starts_with('0') && digits.len() > 1;
            Some(if code {
                zh_digits(digits, true)
            } else {
                zh_cardinal(digits)
            })
        }),
    ]
});

/// `¥1.5亿`, `$5/月`, `HK$500`.
fn price(c: &Captures, around: Around) -> Option<String> {
    let currency = match group(c, 1) {
        "HK$" => "港元",
        "NT$" => "新台币",
        "€" => "欧元",
        "£" => "英镑",
        "¥" | "￥" => "元",
        _ => "美元",
    };
    let more = around.after.starts_with(|x: char| {
        x.is_ascii_alphanumeric() || matches!(x, '-' | '~' | '～' | '–' | '—' | '/')
    });
    let point = around.after.strip_prefix(['.', ',']);
    if more
        || point.is_some_and(|p| p.starts_with(|x: char| x.is_ascii_digit()))
        || around
            .before
            .ends_with(|x: char| x.is_ascii_alphanumeric() || x == '-')
    {
        return None;
    }
    let per = match group(c, 4) {
        "" => String::new(),
        unit => format!("每{unit}"),
    };
    let number = match (group(c, 2), group(c, 3)) {
        ("2", "万" | "亿" | "千万" | "万亿") => "两".into(),
        (number, _) => zh_decimal(number),
    };
    Some(format!("{per}{number}{}{currency}", group(c, 3)))
}

fn hotline(c: &Captures, around: Around) -> Option<String> {
    let digits = group(c, 0).replace('-', "");
    around.is_free().then(|| {
        let words: Vec<String> = [&digits[..3], &digits[3..6], &digits[6..]]
            .iter()
            .map(|d| zh_digits(d, true))
            .collect();
        words.join(" ")
    })
}

fn dotted(c: &Captures, around: Around) -> Option<String> {
    let whole = group(c, 0);
    let version = whole.trim_start_matches(['v', 'V']);
    let parts: Vec<&str> = version.split('.').collect();
    if !around.is_free() || parts[0].len() == 4 && parts.len() == 3 {
        return None;
    }
    let words: Vec<String> = match parts.len() {
        4 => parts.iter().map(|p| zh_digits(p, false)).collect(),
        _ => parts.iter().map(|p| zh_cardinal(p)).collect(),
    };
    let sign = &whole[..whole.len() - version.len()];
    Some(format!("{}{}", sign.to_ascii_uppercase(), words.join("点")))
}

fn measure(c: &Captures, around: Around) -> Option<String> {
    let unit = units::find(group(c, 3))?;
    let joined = around
        .after
        .starts_with(|x: char| x.is_ascii_alphanumeric() || matches!(x, '/' | '²' | '³' | '-'));
    if joined
        || around.before.ends_with(|x: char| {
            x.is_ascii_alphanumeric() || matches!(x, '.' | '/' | '-' | '~' | '$')
        })
    {
        return None;
    }
    let number = group(c, 2).replace(',', "");
    let words = if number == "2" && unit.chinese != "度" {
        "两".into()
    } else {
        zh_decimal(&number)
    };
    let minus = if group(c, 1).is_empty() { "" } else { "负" };
    Some(format!("{minus}{words}{}", unit.chinese))
}

fn single(c: &Captures, _: Around) -> Option<String> {
    let symbol = group(c, 0).chars().next()?;
    Some(match symbol {
        '½' => "二分之一".into(),
        '¼' => "四分之一".into(),
        '¾' => "四分之三".into(),
        '⅓' => "三分之一".into(),
        '⅔' => "三分之二".into(),
        'Ⅰ'..='Ⅻ' => zh_cardinal(&(u32::from(symbol) - u32::from('Ⅰ') + 1).to_string()),
        _ => zh_cardinal(&(u32::from(symbol) - u32::from('①') + 1).to_string()),
    })
}
