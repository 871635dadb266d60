"""Every kind of phase, in the order of a learning step's phases. Adding one adds a line here."""

from typing import Any

from launch.phases.adopt import Adopt
from launch.phases.bias import Bias, CorrectionsBefore
from launch.phases.class_means import ClassMeansOfOld
from launch.phases.compatibility import Compatibility
from launch.phases.evaluate import Evaluate
from launch.phases.exemplar_means import MeansOfExemplars
from launch.phases.exemplars import ChooseExemplars
from launch.phases.expert import ExpertSays, TrainExpert, TrainExpertOnAll
from launch.phases.fine_tune import FineTune
from launch.phases.gaussians import FitGaussians
from launch.phases.head_ends import Heads
from launch.phases.importance import ParameterImportance
from launch.phases.imprint import ImprintRows
from launch.phases.kind import Kind
from launch.phases.mnemonics import LearnExemplars
from launch.phases.neighbours import Neighbours
from launch.phases.similar import SimilarClasses
from launch.phases.train import Train
from launch.phases.train_generator import TrainGenerator

KINDS: tuple[Kind[Any], ...] = (
    Neighbours(),
    ClassMeansOfOld(),
    ImprintRows(),
    CorrectionsBefore(),
    SimilarClasses(),
    TrainExpertOnAll(),
    TrainExpert(),
    ExpertSays(),
    Adopt(),
    Train(),
    ChooseExemplars(),
    LearnExemplars(),
    FineTune(),
    ParameterImportance(),
    FitGaussians(),
    TrainGenerator(),
    MeansOfExemplars(),
    Heads(),
    Bias(),
    Evaluate(),
    Compatibility(),
)
