"""The Chinese half of the corpus: words, story plots and questions, as plain data."""

from folovllm_lite.tiny.grammar import Coin, Entry, Lexicon, Plot

SHE = {"ta": "她", "kid": "女孩"}
HE = {"ta": "他", "kid": "男孩"}

_CHARACTERS = tuple(
    "安白宝贝冰春聪达丹冬朵恩飞菲凤福格歌冠光桂海涵航浩禾荷恒虹花欢慧佳嘉建江杰"
    "洁金晶静娟君凯可坤兰磊莉林玲龙璐梅萌敏楠宁鹏平琪倩青晴秋然仁荣瑞珊诗淑思松"
    "涛天婷彤薇文雪雅阳瑶怡艺英颖勇宇雨玉月云泽哲珍芝志舟竹子紫"
)
# Invented names: 小涵, 阿竹, 思雨. None of these characters stands in a listed name.
_NAMES = Coin(
    shapes=((("小",), _CHARACTERS), (("阿",), _CHARACTERS), (_CHARACTERS, _CHARACTERS)),
    kinds=(SHE, HE),
)


def words(text: str, zipf: float | None = None) -> Lexicon:
    """A lexicon from a list with 、 between the words."""
    entries = [Entry(word) for word in text.split("、")]
    return Lexicon(entries) if zipf is None else Lexicon(entries, zipf=zipf)


def table(text: str, *forms: str) -> Lexicon:
    """A lexicon from lines "word | form | form"."""
    entries = []
    for line in text.strip().splitlines():
        word, *cells = (cell.strip() for cell in line.split("|"))
        entries.append(Entry(word, dict(zip(forms, cells, strict=True))))
    return Lexicon(entries)


def _children() -> Lexicon:
    girls = "小红 小丽 小美 小芳 小花 妞妞 丽丽 甜甜 圆圆 小燕".split()
    boys = "小明 小刚 小华 小强 乐乐 豆豆 壮壮 小军 明明 小虎".split()
    pairs = zip(boys, girls, strict=True)
    entries = [
        Entry(n, f) for pair in pairs for n, f in zip(pair, (HE, SHE), strict=True)
    ]
    return Lexicon(entries, coin=_NAMES, coined=0.25)


def _sums(sign: str) -> Lexicon:
    """All a + b with a, b up to 10, or all a - b with a up to 10; equally likely."""
    entries = []
    for a in range(11):
        for b in range(11 if sign == "+" else a + 1):
            result = a + b if sign == "+" else a - b
            forms = {"a": str(a), "b": str(b), "c": str(result)}
            entries.append(Entry(f"{a} {sign} {b}", forms))
    return Lexicon(entries, zipf=0.0)


LEXICONS = {
    "child": _children(),
    "trait": words("善良、快乐、勇敢、安静、聪明、可爱"),
    "color": words("红色、蓝色、绿色、黄色、紫色、白色"),
    "family": words("妈妈、爸爸、奶奶、爷爷、姐姐、哥哥"),
    "place": words(
        "公园、花园、海边、森林、湖边、农场、河边、市场、山上、学校、草地、操场"
    ),
    "flyer": words("风筝、气球、纸飞机、皮球"),
    "climber": table(
        """
        松鼠 | 爬上了树
        小鸟 | 飞到了树顶
        猴子 | 跳到了树上
        大熊 | 摇了摇大树
        小猫 | 爬到了树顶
        """,
        "way",
    ),
    "thing": words("帽子、图书、布娃娃、围巾、小汽车、玩具熊、钥匙、书包"),
    "spot": words("长椅下面、大树后面、草丛里、树叶下面、石头旁边、门口"),
    "finder": words("小狗、狐狸、兔子、鸭子、老鼠、猫头鹰"),
    "food": words("苹果、饼干、蛋糕、梨、香蕉、面包、包子、桃子"),
    "hungry": words("小鸟、小狗、小猫、鸭子、老鼠、兔子"),
    "cup": words("杯子、碗、盘子、花瓶、台灯"),
    "noise": table(
        """
        青蛙 | 呱呱
        小猫 | 喵喵
        鸭子 | 嘎嘎
        小狗 | 汪汪
        老鼠 | 吱吱
        """,
        "sound",
    ),
    "plant": words("花、南瓜、向日葵、豆苗、玫瑰、西红柿"),
    "skill": words("游泳、骑车、滑冰、跳舞、唱歌、画画"),
    "hurt": table(
        """
        小鸟 | 翅膀 | 飞
        兔子 | 腿 | 跳
        小猫 | 爪子 | 跑
        小狗 | 爪子 | 跑
        狐狸 | 腿 | 跑
        """,
        "part",
        "went",
    ),
    "craft": words("贺卡、图画、手链、纸船、纸星星"),
    "sum": _sums("+"),
    "minus": _sums("-"),
    "fact": table(
        """
        天空是什么颜色的 | 天空是蓝色的。
        草是什么颜色的 | 草是绿色的。
        雪是什么颜色的 | 雪是白色的。
        香蕉是什么颜色的 | 香蕉是黄色的。
        蜜蜂做什么 | 蜜蜂做蜂蜜。
        奶牛给我们什么 | 奶牛给我们牛奶。
        鱼住在哪里 | 鱼住在水里。
        鸟住在哪里 | 鸟住在鸟窝里。
        狗有几条腿 | 狗有四条腿。
        鸟有几条腿 | 鸟有两条腿。
        蜘蛛有几条腿 | 蜘蛛有八条腿。
        一个星期有几天 | 一个星期有七天。
        大的反义词是什么 | 大的反义词是小。
        热的反义词是什么 | 热的反义词是冷。
        高的反义词是什么 | 高的反义词是低。
        白天的反义词是什么 | 白天的反义词是黑夜。
        晚上什么会发光 | 晚上月亮会发光。
        白天什么会发光 | 白天太阳会发光。
        冰是什么做的 | 冰是水做的。
        中国的首都是哪里 | 中国的首都是北京。
        法国的首都是哪里 | 法国的首都是巴黎。
        """,
        "answer",
    ),
    "animal": table(
        """
        狗 | 汪汪
        猫 | 喵喵
        牛 | 哞哞
        鸭子 | 嘎嘎
        羊 | 咩咩
        猪 | 哼哼
        青蛙 | 呱呱
        老鼠 | 吱吱
        """,
        "says",
    ),
}

_OPEN = [
    "从前，有一个小{hero.kid}叫{hero}，{hero.ta}喜欢去{place}玩。",
    "有一天，{hero}和{family}一起去了{place}。",
    "{hero}去{place}玩，天气很好。",
    "{hero}是一个{trait}的{hero.kid}，{hero.ta}每天都去{place}。",
    "从前有个{trait}的{hero.kid}，名字叫{hero}。{hero.ta}常常去{place}。",
    "一天早上，{hero}来到了{place}。",
    "你好！今天我来讲{hero}的故事。有一天，{hero.ta}去了{place}。",
]
_SLOTS = {"hero": "child", "place": "place", "family": "family", "trait": "trait"}


def _story(name: str, steps: list[list[str]], **slots: str) -> Plot:
    return Plot(name, {**_SLOTS, **slots}, [_OPEN, *steps], joint="")


STORIES = [
    _story(
        "stuck",
        [
            [
                "{hero.ta}带着一个{color}的{flyer}。",
                "{hero.ta}手里拿着一个{color}的{flyer}。",
            ],
            [
                "忽然一阵大风，把{flyer}吹到了树上。",
                "这时候起风了，{flyer}挂在了树上。",
            ],
            [
                "{hero}够不着，心里很难过。",
                "树太高了，{hero}急得哭了。",
            ],
            [
                "{climber}看见了，就{climber.way}。",
                "正好一只{climber}路过，它{climber.way}。",
            ],
            [
                "{color}的{flyer}又回到了{hero}手里。",
                "它把{flyer}还给了{hero}。",
            ],
            [
                "“谢谢你，{climber}！”{hero}说。",
                "{hero}谢过{climber}，在{place}一直玩到晚上。",
            ],
        ],
        color="color",
        flyer="flyer",
        climber="climber",
    ),
    _story(
        "lost",
        [
            [
                "可是，{hero.ta}的{color}{thing}不见了。",
                "{hero.ta}发现自己的{color}{thing}丢了。",
            ],
            [
                "{hero.ta}到处找，怎么也找不到。",
                "“我的{thing}在哪里？”{hero.ta}问。",
            ],
            [
                "一只{finder}听见了，跑来帮忙。",
                "{finder}说：“我来帮你找。”",
            ],
            [
                "找啊找，{finder}在{spot}找到了{thing}。",
                "最后，{finder}在{spot}看见了那个{color}{thing}。",
            ],
            [
                "{hero}高兴得跳了起来，谢谢{finder}。",
                "“你找到了我的{thing}，谢谢你！”{hero}说。",
            ],
            [
                "从那以后，{hero}一直好好保管{thing}。",
                "从此，{hero}去{place}都会拿好{thing}。",
            ],
        ],
        color="color",
        thing="thing",
        finder="finder",
        spot="spot",
    ),
    _story(
        "share",
        [
            [
                "{hero.ta}带了一个{food}当午饭。",
                "{family}给了{hero.ta}一个{food}。",
            ],
            [
                "这时，{hero.ta}看见一只很饿的{hungry}。",
                "一只{hungry}看着{food}，它肚子饿了。",
            ],
            [
                "{hero}也想吃{food}，可是{hero.ta}觉得{hungry}很可怜。",
                "“我分给你一点吧。”{hero}说。",
            ],
            [
                "{hero.ta}把一半{food}给了{hungry}。",
                "{hero.ta}把{food}分成两半，一半给了{hungry}。",
            ],
            [
                "{hungry}吃完，就不饿了。",
                "{hungry}吃得饱饱的。",
            ],
            [
                "{hero}和{hungry}成了好朋友，常常在{place}见面。",
                "{hero}明白了，分享让大家都快乐。",
            ],
        ],
        food="food",
        hungry="hungry",
    ),
    _story(
        "rain",
        [
            ["忽然下起了大雨。", "天上来了乌云，开始下雨了。"],
            [
                "{hero}没有带伞，衣服都湿了。",
                "{hero.ta}把伞忘在家里，所以淋湿了。",
            ],
            [
                "好朋友{other}看见了，打着伞跑过来。",
                "{other}打着一把{color}的伞走来。",
            ],
            [
                "“快到我的伞下来。”{other}说。",
                "{other}和{hero}一起打伞。",
            ],
            [
                "他们一起回家，{hero}不再淋雨了。",
                "在伞下面，{hero}一点也不冷了。",
            ],
            [
                "第二天，{hero}带着伞去了{place}。",
                "“谢谢你，{other}！”{hero}说。",
            ],
        ],
        other="child",
        color="color",
    ),
    _story(
        "broken",
        [
            ["回到家，{hero.ta}在屋里跑来跑去。", "{hero.ta}回家以后跑得太快了。"],
            [
                "{hero.ta}撞到桌子，{color}的{cup}掉下来摔坏了。",
                "哎呀！{hero.ta}碰掉了一个{color}的{cup}，{cup}坏了。",
            ],
            [
                "{hero}很害怕，可是{hero.ta}对{family}说了实话。",
                "“对不起，我弄坏了{cup}。”{hero.ta}对{family}说。",
            ],
            [
                "“谢谢你告诉我。”{family}说。",
                "{family}没有生气。",
            ],
            [
                "他们一起用胶水粘好了{cup}。",
                "{family}和{hero}一起修好了{color}的{cup}。",
            ],
            [
                "从那以后，{hero}在家里慢慢走。",
                "{hero}很高兴自己说了实话。",
            ],
        ],
        color="color",
        cup="cup",
    ),
    _story(
        "noise",
        [
            [
                "{place}的天黑了，{hero.ta}听见奇怪的声音。",
                "到了晚上，黑暗里有东西在动。",
            ],
            [
                "“是谁？”{hero}问，心跳得很快。",
                "{hero}很害怕，不敢出声。",
            ],
            [
                "{hero.ta}拿着灯走过去看。",
                "不过{hero.ta}很勇敢，打开了灯。",
            ],
            [
                "“{noise.sound}！”原来是一只{noise}。",
                "原来那只是一只小小的{noise}，它叫着：“{noise.sound}！”",
            ],
            [
                "{hero}笑了，摸了摸{noise}。",
                "{hero}笑了，因为{noise}比{hero.ta}还害怕。",
            ],
            [
                "从那以后，{hero}不怕黑了。",
                "那天晚上，{hero}睡得很香。",
            ],
        ],
        noise="noise",
    ),
    _story(
        "seed",
        [
            ["在那里，{hero.ta}发现了一粒种子。", "{family}给了{hero.ta}一粒种子。"],
            [
                "{hero}把种子种在土里，浇了水。",
                "{hero.ta}种下种子，给它浇水。",
            ],
            [
                "好几天过去了，什么也没有，{hero}还在等。",
                "{hero}每天都给它浇水，耐心地等。",
            ],
            [
                "一天早上，长出了一片绿叶。",
                "终于，土里冒出了绿色的小芽。",
            ],
            [
                "它长啊长，{place}有了大大的{plant}。",
                "不久，那里长出了美丽的{plant}。",
            ],
            [
                "{hero}为自己的{plant}感到骄傲。",
                "{hero}请{family}来看{plant}。",
            ],
        ],
        plant="plant",
    ),
    _story(
        "learn",
        [
            ["{hero.ta}想学{skill}，可是不会。", "{hero.ta}还不会{skill}。"],
            [
                "第一次没有成功，{hero}想放弃。",
                "{hero.ta}试了一次，失败了。",
            ],
            [
                "“再试一次吧。”好朋友{other}说。",
                "{other}走过来，教{hero.ta}怎么做。",
            ],
            [
                "于是{hero}每天都练习。",
                "{hero}和{other}在{place}练习了一个星期的{skill}。",
            ],
            [
                "最后，{hero}学会了{skill}！",
                "有一天，{hero}终于会{skill}了。",
            ],
            [
                "{other}拍手，{hero}非常骄傲。",
                "“我会{skill}了！”{hero}告诉{other}。",
            ],
        ],
        skill="skill",
        other="child",
    ),
    _story(
        "hurt",
        [
            [
                "{hero.ta}看见一只{hurt}，它的{hurt.part}受伤了。",
                "地上躺着一只{hurt}，{hurt.part}受了伤。",
            ],
            [
                "{hero}把它抱回了家。",
                "{hero.ta}带着{hurt}回家了。",
            ],
            [
                "{hero.ta}给它的{hurt.part}包好了布。",
                "{family}帮忙洗干净它的{hurt.part}。",
            ],
            [
                "{hero}每天给{hurt}吃的和水。",
                "{hero}照顾了{hurt}一个星期。",
            ],
            [
                "不久，它的{hurt.part}好了。",
                "过了几天，{hurt}好多了。",
            ],
            [
                "{hurt}{hurt.went}回了{place}，{hero}向它挥手。",
                "{hurt}围着{hero}{hurt.went}来{hurt.went}去，成了{hero.ta}的好朋友。",
            ],
        ],
        hurt="hurt",
    ),
    _story(
        "gift",
        [
            [
                "这天是{other}的生日，可是{hero}没有礼物。",
                "好朋友{other}过生日，{hero}没有钱买礼物。",
            ],
            [
                "{hero}想了一个办法，{hero.ta}做了一个{color}的{craft}。",
                "于是{hero.ta}自己动手做了一个{color}的{craft}。",
            ],
            ["{hero.ta}做了一个上午。", "{hero.ta}做了很久很久。"],
            [
                "生日会上，{hero}把{craft}送给了{other}。",
                "“生日快乐！”{hero}说着，把{craft}给了{other}。",
            ],
            [
                "“{color}的{craft}，我太喜欢了！”{other}说。",
                "在所有礼物里，{other}最喜欢这个{craft}。",
            ],
            [
                "{hero}明白了，最好的礼物是用心做的。",
                "{other}抱了抱{hero}，他们在{place}玩了一整天。",
            ],
        ],
        other="child",
        color="color",
        craft="craft",
    ),
]

STORY_REQUESTS = [
    "讲一个{hero}的故事。",
    "请给我讲一个小{hero.kid}{hero}的故事。",
    "写一个关于{hero}的故事。",
    "给我讲个{hero}的故事吧",
    "讲一个关于{hero}的故事",
]

_TWO = "{hero}在{place}，{other}在{there}。"
_HAVE = "{hero}有一个{color}的{toy}，{other}有一个{hue}的{tool}。"
_OWNERS = {
    "hero": "child",
    "other": "child",
    "color": "color",
    "hue": "color",
    "toy": "flyer",
    "tool": "thing",
}
_PLACES = {"hero": "child", "other": "child", "place": "place", "there": "place"}
PRACTICE = {}  # Chinese names are two characters, and no harder ones are needed
DRILLS = [
    (
        f"drill_{thing}",
        {"hero": "child", "color": "color", "thing": thing},
        ["{hero}有一个{color}的{thing}。{thing}是什么颜色的？"],
        "{thing}是{color}的。",
    )
    for thing in ("flyer", "thing")
]

# name, slots, ways to ask, the answer
QUESTIONS = [
    (
        "add",
        {"s": "sum"},
        ["{s.a}加{s.b}等于几？", "{s.a} + {s.b}等于几？", "{s.a}加{s.b}是多少？"],
        "{s.a}加{s.b}等于{s.c}。",
    ),
    (
        "subtract",
        {"s": "minus"},
        ["{s.a}减{s.b}等于几？", "{s.a} - {s.b}等于几？", "{s.a}减{s.b}是多少？"],
        "{s.a}减{s.b}等于{s.c}。",
    ),
    (
        "add_story",
        {"s": "sum", "hero": "child", "food": "food"},
        ["{hero}有{s.a}个{food}，又得到{s.b}个。{hero}一共有几个{food}？"],
        "{hero}一共有{s.c}个{food}。",
    ),
    (
        "subtract_story",
        {"s": "minus", "hero": "child", "food": "food"},
        ["{hero}有{s.a}个{food}，吃了{s.b}个。还剩几个{food}？"],
        "还剩{s.c}个{food}。",
    ),
    ("where_first", _PLACES, [_TWO + "{hero}在哪里？"], "{hero}在{place}。"),
    ("where_second", _PLACES, [_TWO + "{other}在哪里？"], "{other}在{there}。"),
    ("who_first", _OWNERS, [_HAVE + "谁有{toy}？"], "{hero}有{toy}。"),
    ("who_second", _OWNERS, [_HAVE + "谁有{tool}？"], "{other}有{tool}。"),
    (
        "color_first",
        _OWNERS,
        [_HAVE + "{toy}是什么颜色的？"],
        "{toy}是{color}的。",
    ),
    (
        "color_second",
        _OWNERS,
        [_HAVE + "{tool}是什么颜色的？"],
        "{tool}是{hue}的。",
    ),
    (
        "fact",
        {"f": "fact"},
        ["{f}？", "请问{f}？", "我有一个问题：{f}？", "{f}"],
        "{f.answer}",
    ),
    (
        "animal",
        {"x": "animal"},
        ["{x}怎么叫？", "{x}的叫声是什么？", "请问{x}怎么叫？"],
        "{x}{x.says}叫。",
    ),
    (
        "greeting",
        {},
        ["你好！", "你好", "你好吗？", "早上好！", "您好", "嗨"],
        "你好！很高兴和你聊天。",
    ),
    (
        "name",
        {"hero": "child"},
        ["你好，我叫{hero}。", "我叫{hero}。", "我是{hero}", "我的名字是{hero}。"],
        "你好，{hero}！很高兴认识你。",
    ),
    (
        "self",
        {},
        ["你是谁？", "你叫什么名字？", "你是什么？", "你会做什么？", "你是谁"],
        "我是小福，一个很小的语言模型。我会讲故事，也会回答简单的问题。",
    ),
    ("thanks", {}, ["谢谢！", "谢谢你！", "谢谢"], "不客气！"),
    ("bye", {}, ["再见！", "再见", "拜拜"], "再见！下次再聊。"),
]
SYSTEM = ["你是一个乐于助人的助手。", "你是小福。", "请用中文回答。"]
