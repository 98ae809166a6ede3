//! Units of measure: written form, and the word in each language.

/// A unit: English singular and plural, Chinese, Japanese.
pub(super) struct Unit {
    pub(super) one: &'static str,
    pub(super) many: &'static str,
    pub(super) chinese: &'static str,
    pub(super) japanese: &'static str,
}

const fn unit(
    one: &'static str,
    many: &'static str,
    chinese: &'static str,
    japanese: &'static str,
) -> Unit {
    Unit {
        one,
        many,
        chinese,
        japanese,
    }
}

/// Units by how they are written; case matters.
#[rustfmt::skip]
const UNITS: &[(&str, Unit)] = &[
    ("km/h", unit("kilometer per hour", "kilometers per hour", "千米每小时", "キロメートル毎時")),
    ("kmh", unit("kilometer per hour", "kilometers per hour", "千米每小时", "キロメートル毎時")),
    ("kph", unit("kilometer per hour", "kilometers per hour", "千米每小时", "キロメートル毎時")),
    ("mph", unit("mile per hour", "miles per hour", "英里每小时", "マイル毎時")),
    ("m/s²", unit("meter per second squared", "meters per second squared", "米每二次方秒", "メートル毎秒毎秒")),
    ("m/s", unit("meter per second", "meters per second", "米每秒", "メートル毎秒")),
    ("mg/dL", unit("milligram per deciliter", "milligrams per deciliter", "毫克每分升", "ミリグラムパーデシリットル")),
    ("mg/L", unit("milligram per liter", "milligrams per liter", "毫克每升", "ミリグラムパーリットル")),
    ("mmol/L", unit("millimole per liter", "millimoles per liter", "毫摩尔每升", "ミリモルパーリットル")),
    ("g/cm³", unit("gram per cubic centimeter", "grams per cubic centimeter", "克每立方厘米", "グラム毎立方センチメートル")),
    ("kg/m³", unit("kilogram per cubic meter", "kilograms per cubic meter", "千克每立方米", "キログラム毎立方メートル")),
    ("km²", unit("square kilometer", "square kilometers", "平方千米", "平方キロメートル")),
    ("cm²", unit("square centimeter", "square centimeters", "平方厘米", "平方センチメートル")),
    ("mm²", unit("square millimeter", "square millimeters", "平方毫米", "平方ミリメートル")),
    ("m²", unit("square meter", "square meters", "平方米", "平方メートル")),
    ("㎡", unit("square meter", "square meters", "平方米", "平方メートル")),
    ("cm³", unit("cubic centimeter", "cubic centimeters", "立方厘米", "立方センチメートル")),
    ("m³", unit("cubic meter", "cubic meters", "立方米", "立方メートル")),
    ("sq ft", unit("square foot", "square feet", "平方英尺", "平方フィート")),
    ("km", unit("kilometer", "kilometers", "千米", "キロメートル")),
    ("㎞", unit("kilometer", "kilometers", "千米", "キロメートル")),
    ("cm", unit("centimeter", "centimeters", "厘米", "センチメートル")),
    ("㎝", unit("centimeter", "centimeters", "厘米", "センチメートル")),
    ("mm", unit("millimeter", "millimeters", "毫米", "ミリメートル")),
    ("㎜", unit("millimeter", "millimeters", "毫米", "ミリメートル")),
    ("μm", unit("micrometer", "micrometers", "微米", "マイクロメートル")),
    ("µm", unit("micrometer", "micrometers", "微米", "マイクロメートル")),
    ("nm", unit("nanometer", "nanometers", "纳米", "ナノメートル")),
    ("kg", unit("kilogram", "kilograms", "千克", "キログラム")),
    ("㎏", unit("kilogram", "kilograms", "千克", "キログラム")),
    ("mg", unit("milligram", "milligrams", "毫克", "ミリグラム")),
    ("μg", unit("microgram", "micrograms", "微克", "マイクログラム")),
    ("lbs", unit("pound", "pounds", "磅", "ポンド")),
    ("lb", unit("pound", "pounds", "磅", "ポンド")),
    ("oz", unit("ounce", "ounces", "盎司", "オンス")),
    ("ft", unit("foot", "feet", "英尺", "フィート")),
    ("mi", unit("mile", "miles", "英里", "マイル")),
    ("yd", unit("yard", "yards", "码", "ヤード")),
    ("mL", unit("milliliter", "milliliters", "毫升", "ミリリットル")),
    ("ml", unit("milliliter", "milliliters", "毫升", "ミリリットル")),
    ("L", unit("liter", "liters", "升", "リットル")),
    ("tbsp", unit("tablespoon", "tablespoons", "汤匙", "大さじ")),
    ("tsp", unit("teaspoon", "teaspoons", "茶匙", "小さじ")),
    ("GHz", unit("gigahertz", "gigahertz", "吉赫兹", "ギガヘルツ")),
    ("MHz", unit("megahertz", "megahertz", "兆赫兹", "メガヘルツ")),
    ("kHz", unit("kilohertz", "kilohertz", "千赫兹", "キロヘルツ")),
    ("Hz", unit("hertz", "hertz", "赫兹", "ヘルツ")),
    ("kWh", unit("kilowatt hour", "kilowatt hours", "千瓦时", "キロワット時")),
    ("MW", unit("megawatt", "megawatts", "兆瓦", "メガワット")),
    ("kW", unit("kilowatt", "kilowatts", "千瓦", "キロワット")),
    ("mAh", unit("milliamp hour", "milliamp hours", "毫安时", "ミリアンペア時")),
    ("mA", unit("milliampere", "milliamperes", "毫安", "ミリアンペア")),
    ("kV", unit("kilovolt", "kilovolts", "千伏", "キロボルト")),
    ("V", unit("volt", "volts", "伏", "ボルト")),
    ("W", unit("watt", "watts", "瓦", "ワット")),
    ("kPa", unit("kilopascal", "kilopascals", "千帕", "キロパスカル")),
    ("hPa", unit("hectopascal", "hectopascals", "百帕", "ヘクトパスカル")),
    ("mmHg", unit("millimeter of mercury", "millimeters of mercury", "毫米汞柱", "ミリメートルエイチジー")),
    ("dB", unit("decibel", "decibels", "分贝", "デシベル")),
    ("kcal", unit("kilocalorie", "kilocalories", "千卡", "キロカロリー")),
    ("kJ", unit("kilojoule", "kilojoules", "千焦", "キロジュール")),
    ("Gbps", unit("gigabit per second", "gigabits per second", "吉比特每秒", "ギガビット毎秒")),
    ("Mbps", unit("megabit per second", "megabits per second", "兆比特每秒", "メガビット毎秒")),
    ("kbps", unit("kilobit per second", "kilobits per second", "千比特每秒", "キロビット毎秒")),
    ("MB/s", unit("megabyte per second", "megabytes per second", "MB每秒", "メガバイト毎秒")),
    ("GB/s", unit("gigabyte per second", "gigabytes per second", "GB每秒", "ギガバイト毎秒")),
    ("KB", unit("kilobyte", "kilobytes", "KB", "キロバイト")),
    ("kB", unit("kilobyte", "kilobytes", "KB", "キロバイト")),
    ("MB", unit("megabyte", "megabytes", "MB", "メガバイト")),
    ("GB", unit("gigabyte", "gigabytes", "GB", "ギガバイト")),
    ("TB", unit("terabyte", "terabytes", "TB", "テラバイト")),
    ("rpm", unit("revolution per minute", "revolutions per minute", "转每分钟", "回転毎分")),
    ("fps", unit("frame per second", "frames per second", "帧每秒", "フレーム毎秒")),
    ("ppm", unit("part per million", "parts per million", "百万分之一", "ピーピーエム")),
    ("px", unit("pixel", "pixels", "像素", "ピクセル")),
    ("dpi", unit("dot per inch", "dots per inch", "点每英寸", "ディーピーアイ")),
    ("°C", unit("degree Celsius", "degrees Celsius", "摄氏度", "度")),
    ("℃", unit("degree Celsius", "degrees Celsius", "摄氏度", "度")),
    ("°F", unit("degree Fahrenheit", "degrees Fahrenheit", "华氏度", "度エフ")),
    ("℉", unit("degree Fahrenheit", "degrees Fahrenheit", "华氏度", "度エフ")),
    ("°", unit("degree", "degrees", "度", "度")),
    ("ms", unit("millisecond", "milliseconds", "毫秒", "ミリ秒")),
    ("μs", unit("microsecond", "microseconds", "微秒", "マイクロ秒")),
    ("ns", unit("nanosecond", "nanoseconds", "纳秒", "ナノ秒")),
    ("sec", unit("second", "seconds", "秒", "秒")),
    ("mins", unit("minute", "minutes", "分钟", "分")),
    ("min", unit("minute", "minutes", "分钟", "分")),
    ("hrs", unit("hour", "hours", "小时", "時間")),
    ("hr", unit("hour", "hours", "小时", "時間")),
];

pub(super) fn find(written: &str) -> Option<&'static Unit> {
    UNITS.iter().find(|(w, _)| *w == written).map(|(_, u)| u)
}

/// All written forms as alternatives of a pattern, longest first.
pub(super) fn alternatives() -> String {
    let mut written: Vec<&str> = UNITS.iter().map(|(w, _)| *w).collect();
    written.sort_by_key(|w| std::cmp::Reverse(w.len()));
    written
        .iter()
        .map(|w| regex::escape(w))
        .collect::<Vec<_>>()
        .join("|")
}
