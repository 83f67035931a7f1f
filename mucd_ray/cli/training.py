"""`mucd run`, `grow`, `certify` and `tune`: what makes a certified run."""

import argparse

from mucd_ray.cli.options import add_choices, add_command, add_environment, add_resources, add_until, key, keys, path, sentence


def add_run(commands):
    sub = add_command(commands, "run", run, "Train an ensemble on a dataset, certify it and write a run folder.", "mucd run acrobot/mixed-v0 --storage runs/acrobot --fraction 0.01")
    sub.add_argument("dataset", help="Minari dataset id (local, or under MINARI_DATASETS_PATH)")
    sub.add_argument("--storage", "--out", type=path, required=True, help="run folder, a local path or an fsspec URL such as s3://bucket/run; an unfinished run there is continued")
    sub.add_argument("--instances", type=int, default=1000, help="P, the number of instances")
    sub.add_argument("--card", type=path, help="JSON file with the environment's public facts, see `mucd card`, or the name of a plug-in (default: the shipped card, or that of a plug-in in JSON; without one --return-range is enough for bags, parts and trainers of yours)")
    sub.add_argument("--no-environment", action="store_true", help="the dataset's environment is unknown, not installed or does not exist: nothing is played, and actions alone are certified, at the states of --states-file or --trusted-states; of --card what is about observations is taken")
    sub.add_argument("--encoder", type=path, metavar="FILE", help="ONNX or TorchScript file whose outputs replace observations, for every mechanism; it must not depend on this dataset, and is run in this process")
    sub.add_argument("--features", metavar="NAME", help="features that replace observations in the same way, for trainers of yours, too: gradient-histograms of images, or those of an installed plug-in (docs/plugins.md)")
    sub.add_argument("--unit", choices=["transition", "trajectory", "source"], help="what an attacker changes, and what the certificate counts (default: source with --source-key; otherwise trajectory where there are at least 18 of them, transition where there are fewer; with a mechanism given, transition for gaussian and trajectory for all others)")
    sub.add_argument("--source-key", type=key, metavar="NAME", help="key that tells the source of a trajectory (an operator, a robot, an upload): a text or whole number in the episodes' metadata, or among their infos; a trajectory without it is a source by itself")
    sub.add_argument("--observation-keys", type=keys, metavar="KEY,...", help="of observations in a Dict or Tuple space, the keys that policies see, such as position,camera/front (default: all, in the order of their sorted names)")
    sub.add_argument("--tuned", type=path, metavar="FILE", help="tuned.json of `mucd tune`: sets unit, mechanism and learner")
    group = sub.add_argument_group("mechanism", "public constants; by default planned from the declared size and the wanted fraction")
    group.add_argument("--mechanism", choices=["gaussian", "bag", "bag-then-noise", "partition", "neighbours"], help="gaussian clips what each unit adds and trains with noise; bag trains every instance on a bag of its own, partition one policy on each part, both without noise; bag-then-noise trains with noise on a bag of its own; with neighbours the nearest units vote and nothing is trained (default: bag where trajectories or sources are the unit, gaussian where transitions are; `mucd plan --units N --unit UNIT` compares them)")
    group.add_argument("--bag-size", type=int, metavar="K", help="with bag: units in each bag (default: the most that withstand the wanted fraction; with bag-then-noise twice as many)")
    group.add_argument("--parts", type=int, metavar="U", help="with partition: number of parts (default: the fewest that withstand the wanted fraction)")
    group.add_argument("--spread", type=int, metavar="D", help="with partition: each unit is in D parts, which are so much larger, or where --parts is left out, so many more (Finite Aggregation) (default: 1)")
    group.add_argument("--draws", choices=["fixed", "replacement", "poisson"], help="with bag: exactly K units without or with replacement, or K on average, each by itself (default: fixed; poisson with bag-then-noise)")
    group.add_argument("--neighbours", type=int, metavar="K", help="with neighbours: how many nearest units vote (default: ten times the wanted fraction of the units)")
    group.add_argument("--metric", choices=["declared", "bounds"], help="with neighbours: distance between the card's features, or between plain observations over their declared ranges (default: declared)")
    group.add_argument("--fraction", type=float, help="share of the units that a unanimous vote should withstand, with bag and partition a vote of 90 %% (default: 0.01)")
    group.add_argument("--units", type=int, help="declared size of the dataset (default: its size rounded to 1.1, 1.75, 2.75, 4.5 or 7 times a power of ten; then no radius is claimed beyond the next border of the rounding)")
    group.add_argument("--sample-rate", type=float, help="q (default: a batch of about 1024, or the whole bag)")
    group.add_argument("--noise-multiplier", type=float, help="sigma; with it q and steps must be given and nothing is planned (default: planned)")
    group.add_argument("--steps", type=int, help="T (default: 100)")
    group.add_argument("--clip-norm", type=float, help="C (default: 0.1)")
    group = sub.add_argument_group("learner", "public constants")
    group.add_argument("--algorithm", "--trainer", metavar="NAME", help="offline learner, see docs/algorithms.md (default: bc, behaviour cloning); with bag or partition also a function train(bag, seed, device) of yours, package.module:function or path/to/file.py:function, or the name of an installed plug-in (`mucd --version` lists them)")
    group.add_argument("--trainer-command", metavar="COMMAND", help='with bag or partition: a command that trains, such as "python train.py {bag} {out} {seed}": it reads the bag from the folder {bag} and writes ONNX or TorchScript to {out}')
    group.add_argument("--bag-format", choices=["npz", "minari", "parquet"], help="with --trainer-command: {bag} holds bag.npz, the Minari dataset bag-v0, or bag.parquet with a row for each transition (default: npz)")
    group.add_argument("--train-seconds", type=float, metavar="S", help="a trainer of yours may take this long on each bag, and its policy as long to act; a public constant (default: 600)")
    group.add_argument("--train-memory", type=float, metavar="GB", help="it may take this much memory, with all that it starts; a public constant (default: 4)")
    group.add_argument("--history", type=int, default=1, metavar="K", help="with bag or partition of trajectories or sources: policies see the last K observations of the episode, oldest first, at its beginning the first one in the place of those that are missing; with dt the last K steps, with actions and rewards")
    group.add_argument("--constant", action="append", metavar="NAME=NUMBER", help="a constant of the algorithm, such as alpha=2; may be repeated")
    group.add_argument("--network", help="dense, convolutional for images, or with bag or partition transformer over the observations of --history (default: dense; transformer for dt)")
    group.add_argument("--hidden", help="widths of hidden layers, such as 64,64 (default: none, a linear policy; 64,64 without noise)")
    group.add_argument("--random-features", type=int, metavar="M", help="replace observations by M public random Fourier features (default: 0, as they are)")
    group.add_argument("--bandwidth", type=float, help="distance over which random features change (default: 1)")
    group.add_argument("--optimiser", help="sgd or adam (default: sgd; adam without noise)")
    group.add_argument("--learning-rate", type=float, help="of the optimiser (default: with noise 30 for bc and cql, 0.3 to 10 for the others; without noise that of the environment's card, or 0.001)")
    group.add_argument("--momentum", type=float, help="of sgd (default: 0)")
    group.add_argument("--average", type=float, help="share of the final iterates that is averaged (default: 0.5)")
    group.add_argument("--cap", type=int, help="with --unit trajectory or source: most transitions of one of them that a step looks at (default: 200)")
    group.add_argument("--local-steps", type=int, help="with --unit trajectory or source: gradient steps of its own update (default: 1)")
    group.add_argument("--local-learning-rate", type=float, help="of these steps (default: 0.1)")
    group.add_argument("--min-return", type=float, help="with --unit trajectory or source: trajectories that earned less count as zero (with neighbours they do not vote); a public constant")
    group.add_argument("--train-steps", type=int, help="with bag or partition: steps of the optimiser on each bag or part (default: 3000)")
    group.add_argument("--batch-size", type=int, help="with bag or partition: transitions in a minibatch (default: 128)")
    group.add_argument("--top-share", type=float, help="with bag or partition: share of its trajectories that is learned from, those with the largest returns (default: 0.5 for bc of continuous actions; bc of discrete ones trusts trajectories by the rank of their returns; 1 for the others)")
    group.add_argument("--entries", type=int, metavar="N", help="with bag or partition: how many entries of an observation a policy looks at, chosen in each bag; worth it where observations are long, such as a game's RAM (default: what the environment's card declares, or all)")
    group.add_argument("--mirrored", action=argparse.BooleanOptionalAction, help="with bag or partition: learn from the mirror image of every trajectory, too (default: where the environment's card declares a mirror)")
    group.add_argument("--chosen", type=sentence, help="one sentence for the certificate: how you chose these constants")
    add_until(sub)
    group = sub.add_argument_group("evaluation")
    group.add_argument("--trusted", metavar="DATASET", help="Minari dataset of the same environment that you trust: what a policy trained on it alone earns is shown as a yardstick; nothing else uses it")
    group.add_argument("--rollouts", type=int, help="episodes per instance; its return is their mean; with neighbours the number of episodes (default: 1; 100 with neighbours)")
    group.add_argument("--discount", type=float, default=1.0, help="a reward after t steps counts discount^t; below 1 the card must bound rewards and episode length, or clip returns (then the discounted sum is clipped)")
    group.add_argument("--evaluator", metavar="NAME", help="your own score(policy, seed) -> number in the place of the return: package.module:function or path/to/file.py:function; policy.act(observations) acts. It must read nothing of this dataset")
    group.add_argument("--score-range", metavar="LO,HI", help="with --evaluator: public range of its scores; any other, an exception, or none in time counts as LO")
    group.add_argument("--evaluator-seconds", type=float, metavar="S", help="with --evaluator: a score may take this long; a public constant (default: 60)")
    group.add_argument("--states", type=int, help="number of states to vote on, chosen by held-out instances, or drawn from --trusted-states (default: 200)")
    group.add_argument("--states-file", type=path, help=".npy file of observations to vote on instead")
    group.add_argument("--trusted-states", metavar="DATASET", help="draw the states at random from this Minari dataset, which you trust and which declares the same spaces; the certificate names it by its content")
    group.add_argument("--held-out", type=int, help="instances that choose the states and do not vote (default: 16)")
    group.add_argument("--seed", type=int, help="reproducible randomness, for tests: the certificate holds only if no attacker knows it (default: a secret)")
    add_environment(sub)
    add_choices(sub)
    add_resources(sub, of_run=True)


def run(options, out):
    from mucd_ray.service.runs.commands import start_run

    return start_run(options, out)


def add_grow(commands):
    sub = add_command(commands, "grow", grow, "Add instances to a run and certify it again.", "mucd grow runs/acrobot --instances 3000")
    sub.add_argument("run", type=path, help="run folder")
    sub.add_argument("--instances", type=int, required=True, help="new total number of instances")
    sub.add_argument("--card", type=path, help="the file with which the run began, if that was no shipped card: a run folder alone makes no environment")
    sub.add_argument("--encoder", type=path, metavar="FILE", help="the file with which the run began, if it has one")
    sub.add_argument("--features", metavar="NAME", help="the features of a plug-in with which the run began, if it has some: a run folder alone imports none")
    sub.add_argument("--trainer", metavar="NAME", help="the trainer with which the run began, needed if it is from outside the package: a run folder alone imports none")
    sub.add_argument("--trainer-command", metavar="COMMAND", help="the same of a command")
    sub.add_argument("--evaluator", metavar="NAME", help="the evaluator with which the run began, if it has one: a run folder alone calls none")
    add_until(sub)
    add_environment(sub, again=True)
    add_choices(sub, of_run=True)
    add_resources(sub, of_run=True)


def grow(options, out):
    from mucd_ray.service.runs.commands import grow_run

    return grow_run(options, out)


def add_certify(commands):
    sub = add_command(commands, "certify", certify, "Certify the finished instances of a run, without training.", "mucd certify runs/acrobot --threat insert --eta 0.01")
    sub.add_argument("run", type=path, help="run folder")
    group = sub.add_argument_group("vote rules", "of a partition, all of whose policies vote; episodes are kept in the run folder, and each is played once")
    group.add_argument("--rule", choices=["parl", "tparl", "dparl", "roe", "fa"], help="also certify the policy of this rule, action by action, in --episodes of its own with the seeds 0, 1, ...: the most votes (parl), over the last steps (tparl), over as many of them as lead most clearly (dparl), a run-off of two (roe), the most votes with --spread (fa); with --policy vote also its return, through all that poisoning could make of it")
    group.add_argument("--window", type=int, metavar="W", help="with tparl and dparl: steps whose votes count at most (default: 5)")
    group.add_argument("--never", type=int, metavar="ACTION", help="an action, counted from 0, with --rule or --policy vote: how many poisoned units it takes until it could be chosen at a state; with --policy vote also in whole episodes, whatever poisoned votes make of them")
    sub.add_argument("--card", type=path, help="with --policy vote or --rule: the file with which the run began, if that was no shipped card: a run folder alone makes no environment")
    sub.add_argument("--encoder", type=path, metavar="FILE", help="with --policy vote or --rule: the file with which the run began, if it has one")
    sub.add_argument("--features", metavar="NAME", help="with --policy vote or --rule: the features of a plug-in with which the run began, if it has some")
    sub.add_argument("--looks", default="fixed", choices=["fixed", "anytime"], help="anytime certifies the largest complete number of the public series 100, 160, 250, ...; fixed one that was asked for")
    add_environment(sub, again=True, when="with --policy vote or --rule ")
    add_choices(sub)


def certify(options, out):
    from mucd_ray.service.runs.commands import certify_run

    return certify_run(options, out)


def add_tune(commands):
    sub = add_command(
        commands, "tune", tune,
        "Search public constants of learner and mechanism under a signal budget, on data that is not the data to be certified. The same command continues a search that was killed.",
        "mucd tune --simulate Acrobot-v1 --storage runs/tuning --fraction 0.01 && mucd run acrobot/mixed-v0 --storage runs/tuned --tuned runs/tuning/tuned.json",
    )
    sub.add_argument("--storage", type=path, required=True, help="folder of the study, reachable from every node")
    sub.add_argument("--tune-on", metavar="DATASET", help="Minari dataset that you trust: no attacker can change it")
    sub.add_argument("--simulate", metavar="ENV_ID", help="record fresh data in this environment instead")
    sub.add_argument("--behaviour", help="behaviour policy of --simulate (default: the environment's first)")
    sub.add_argument("--policy", metavar="POLICY", help="a policy of yours instead, as of `mucd record`")
    sub.add_argument("--transitions", type=int, help="of --simulate (default: 20000)")
    sub.add_argument("--card", type=path, help="JSON file with the environment's public facts, or the name of a plug-in (default: the shipped card, or that of a plug-in in JSON)")
    sub.add_argument("--mechanism", default="gaussian", choices=["gaussian", "bag", "bag-then-noise", "partition"], help="as of `mucd run`; of bags and parts their size, the algorithm and how it is trained are searched, of bag-then-noise the size of bags, the noise and the steps")
    sub.add_argument("--unit", choices=["transition", "trajectory", "source"], help="what an attacker changes (default: source with --source-key; else transition with gaussian, trajectory with the others)")
    sub.add_argument("--source-key", type=key, metavar="NAME", help="with --tune-on: key that tells the source of a trajectory, as of `mucd run`")
    sub.add_argument("--algorithm", "--trainer", metavar="NAME", help="offline learner, see docs/algorithms.md; on bags and parts several to choose from, with commas between (default: bc; on bags bc,iql,cql or bc,iql,td3-bc); or a function of yours or a plug-in as of `mucd run`, of whose bags or parts the size alone is searched")
    sub.add_argument("--entries", metavar="LIST", help="with bag or partition: numbers of entries of an observation to choose from, such as all,6,12, the first one first (default: all entries, not searched)")
    sub.add_argument("--history", metavar="LIST", help="with bag or partition of trajectories or sources: numbers of observations that policies see to choose from, such as 1,2,4 (default: 1, not searched)")
    sub.add_argument("--trainer-command", metavar="COMMAND", help="the same of a command")
    sub.add_argument("--bag-format", choices=["npz", "minari", "parquet"], help="as of `mucd run`")
    sub.add_argument("--train-seconds", type=float, metavar="S", help="as of `mucd run`")
    sub.add_argument("--train-memory", type=float, metavar="GB", help="as of `mucd run`")
    sub.add_argument("--units", type=int, help="size of the dataset that will be certified (default: that of the tuning data)")
    sub.add_argument("--fraction", type=float, help="share of the units at which the certified return shall be large; the signal budget, or the range of bag sizes, is planned from it (default: 0.01)")
    sub.add_argument("--signal-budget", type=float, help="S = N q sqrt(T) / sigma instead, with gaussian")
    sub.add_argument("--instances", type=int, default=1000, help="P that the certificate will have")
    sub.add_argument("--trials", type=int, default=32, help="configurations to try, the package's defaults first")
    sub.add_argument("--most-instances", type=int, default=64, help="of a trial; half of the trials end at an eighth, a quarter and a half of them")
    sub.add_argument("--seed", type=int, default=0, help="of the search")
    add_environment(sub)
    add_resources(sub, per_trial=True)


def tune(options, out):
    from mucd_ray.service.runs.commands import tune_constants

    tune_constants(options, out)
